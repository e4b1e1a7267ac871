"""The comparison's figures, as SVG that takes the page's colours."""

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.comparison.contenders import DOWNSCALED, SERVABLE, TUNED
from pipelines.comparison.rows import Comparison, Row

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INK = "#010203"  # stands for the page's own text colour
PALETTE = (
    "#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#65a30d", "#7c3aed",
    "#0d9488", "#b45309", "#4f46e5", "#be123c",
)  # fmt: skip
GREY = "#8a8f98"
LOOK: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def accuracy_figure(comparison: Comparison) -> str:
    """Accuracy against budget, a line a method and variant, its interval as a band."""
    with plt.rc_context(LOOK):
        return _svg(_draw_accuracy(comparison))


def save_accuracy(comparison: Comparison, path: Path) -> Path:
    """The same as a PNG for documents; returns its path."""
    figure = _draw_accuracy(comparison)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _draw_accuracy(comparison: Comparison) -> Figure:
    figure, axes = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
    budgets = sorted(comparison.budgets)
    axes.axhline(comparison.unpruned.accuracy.mean, color=GREY, linewidth=1, linestyle=":")
    for name, rows in _lines(comparison).items():
        look = _look(comparison, rows[0])
        at = [row.budget or 1.0 for row in rows]
        axes.plot(at, [row.accuracy.mean for row in rows], label=name, markersize=5, **look)
        if len(rows) > 1:
            low, high = ([getattr(row.accuracy, end) for row in rows] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=look["color"], alpha=0.06, linewidth=0)
        else:
            [row] = rows
            axes.plot(at * 2, [row.accuracy.low, row.accuracy.high], color=look["color"], alpha=0.4)
    axes.set(xscale="log", xlabel=f"{comparison.measure} (share of the unpruned model's)")
    axes.set_ylabel("accuracy" if comparison.known else "agreement with the unpruned model")
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    figure.legend(loc="outside right center", fontsize=9, frameon=False)
    return figure


def pareto_figure(comparison: Comparison) -> str:
    """Accuracy against the time to the first token; the front is what no other beats in both."""
    rows = comparison.rows
    with plt.rc_context(LOOK):
        figure, axes = plt.subplots(figsize=(8.6, 4.6), layout="constrained")
        for name, own in {comparison.unpruned.name: [comparison.unpruned], **_lines(comparison)}.items():
            look = _look(comparison, own[0]) | {"linestyle": "none"}
            axes.plot([1 / r.speed_up for r in own], [r.accuracy.mean for r in own], label=name, markersize=6, **look)
        best = front(rows)
        axes.plot(
            [1 / row.speed_up for row in best],
            [row.accuracy.mean for row in best],
            color=GREY,
            linewidth=1,
            zorder=0,
            drawstyle="steps-post",
        )
        for row in best:
            if row.budget is not None:
                _note(axes, f"{row.budget:g}", row)
        axes.set(xlabel="time to the first token ÷ the unpruned model's, measured here")
        axes.set_ylabel("accuracy" if comparison.known else "agreement with the unpruned model")
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        figure.legend(loc="outside right center", fontsize=9, frameon=False)
        return _svg(figure)


def front(rows: Sequence[Row]) -> list[Row]:
    """Those that no other beats in accuracy and time, fastest first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.speed_up, -row.accuracy.mean)):
        if not found or row.accuracy.mean > found[-1].accuracy.mean:
            found.append(row)
    return found


def _note(axes: Axes, text: str, row: Row) -> None:
    axes.annotate(
        text, (1 / row.speed_up, row.accuracy.mean), xytext=(4, 5), textcoords="offset points", fontsize=8, color=INK
    )


def _lines(comparison: Comparison) -> dict[str, list[Row]]:
    """Rows by contender, least budget first; who is best over all budgets comes first."""
    lines: dict[str, list[Row]] = {}
    for budget in sorted(comparison.budgets):
        for row in comparison.budgets[budget]:
            lines.setdefault(row.name, []).append(row)
    total = {name: sum(row.accuracy.mean for row in rows) / len(rows) for name, rows in lines.items()}
    return {name: lines[name] for name in sorted(lines, key=lambda name: -total[name])}


def _look(comparison: Comparison, row: Row) -> dict[str, Any]:
    """A colour a method; tuned is solid, servable dash-dotted, published dashed."""
    methods = sorted(
        {each.method for rows in comparison.budgets.values() for each in rows if each.variant != DOWNSCALED}
    )
    if row.method not in methods:
        return {"color": GREY, "marker": "s", "linestyle": ":"}
    colour = PALETTE[methods.index(row.method) % len(PALETTE)]
    tuned = row.variant == TUNED
    return {
        "color": colour,
        "marker": "o",
        "linestyle": "-" if tuned else "-." if row.variant == SERVABLE else "--",
        "markerfacecolor": colour if tuned else "none",
    }


def _svg(figure: Figure) -> str:
    """A figure as an element of a page: transparent, in the page's ink, as wide as there is room."""
    for axes in figure.axes:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1)
