"""The comparison as one self-contained page: what to use, what it costs, how sure that is, and how it was found."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from pipelines.comparison.contenders import DOWNSCALED, UNPRUNED
from pipelines.comparison.provenance import how_it_was_made
from pipelines.comparison.rows import Comparison, Row
from pipelines.comparison.statistics import RIGHT, Interval
from pipelines.comparison.tables import correlation, points
from pipelines.comparison.verdict import pruned, sentences
from pipelines.figures.accuracy import accuracy_figure, pareto_figure
from pipelines.figures.tiles import Strip
from pipelines.settings import Settings

Cell = tuple[str, float | str]  # what is shown, and what it is sorted by


def write_page(settings: Settings, comparison: Comparison, strips: Sequence[Strip], path: Path) -> Path:
    """Write the page; returns its path.

    Args:
        settings: of the run.
        comparison: what was found.
        strips: what contenders see of some pictures.
        path: of the HTML file.
    """
    own = resources.files("pipelines.comparison")
    style, script = (own.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    title = f"Pruning methods on {settings.model.name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{style}</style></head><body><h1>{escape(title)}</h1>\n"
        + "\n".join(_sections(settings, comparison, strips))
        + f"<script>{script}</script></body></html>\n",
        encoding="utf-8",
    )
    return path


def _sections(settings: Settings, comparison: Comparison, strips: Sequence[Strip]) -> Iterable[str]:
    yield (
        f"<p class='soft'>{comparison.samples} held-out samples"
        f"{'' if comparison.known else ' without known answers: accuracy is agreement with the unpruned model'}; "
        f"intervals hold 95 % of {settings.compare.bootstrap:,} paired bootstrap resamples.</p>"
    )
    yield "<h2>Which method to use</h2>" + _list(comparison)
    yield _figure(accuracy_figure(comparison), "Accuracy against the budget. Solid: tuned; dash-dotted: "
                  "tuned for an engine; dashed: published defaults; "
                  "bands: 95 % intervals; dotted: unpruned.")  # fmt: skip
    yield _figure(pareto_figure(comparison), "Accuracy against the time to the first token: tower, what the method "
                  "looks at, selection and prefill, one prompt at a time, interleaved with the unpruned model. The "
                  "line joins what no other beats in both; numbers are budgets.")  # fmt: skip
    for budget, rows in comparison.budgets.items():
        yield f"<h2>{escape(comparison.measure)} {budget:g}</h2>" + _budget_table(comparison, rows)
        if comparison.kinds:
            yield _kinds_table(comparison, rows)
    yield _remarks(comparison)
    yield _pictures(strips)
    yield _predictors(comparison)
    yield "<h2>How it was made</h2>" + how_it_was_made(settings, comparison)


def _list(comparison: Comparison) -> str:
    """The verdicts, what to use in bold."""
    found = (sentences(comparison, budget) for budget, rows in comparison.budgets.items() if pruned(rows))
    lines = (f"<li><b>{escape(first)}</b> {escape(' '.join(others))}</li>" for first, *others in found)
    return f"<ul class='verdicts'>{''.join(lines)}</ul>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _budget_table(comparison: Comparison, rows: Sequence[Row]) -> str:
    hard = comparison.hard[rows[0].budget or 0.0]
    heads = ["", "accuracy, %", "over random", "over next best", "best in", f"hard ({hard})", "agree", "discr.",
             "KL", "retention", "FLOPs", "KV", "speed-up", "ms", "trials"]  # fmt: skip
    best = next((row for row in rows if not _style(row)), None)
    return _table(
        heads, [("best" if row is best else _style(row), _cells(row)) for row in (comparison.unpruned, *rows)]
    )


def _cells(row: Row) -> list[Cell]:
    low, high = row.accuracy.low, row.accuracy.high
    return [
        (row.name, row.name),
        (f"{100 * row.accuracy.mean:.1f} [{100 * low:.0f}, {100 * high:.0f}]", row.accuracy.mean),
        _lead(row.over_random),
        _lead(row.over_other),
        ("–", -1) if row.best_share is None else _share(row.best_share),
        ("–", -1) if row.hard is None else _share(row.hard.mean),
        _share(row.agreement, 1),
        (f"{row.discrepancy:.4f}", row.discrepancy),
        (f"{row.divergence:.3f}", row.divergence),
        (f"{row.retention:.3f}", row.retention),
        _share(row.flops_share),
        _share(row.kv_share),
        (f"{row.speed_up:.2f}×", row.speed_up),
        (f"{row.milliseconds:.1f}", row.milliseconds),
        ("–" if row.trials is None else str(row.trials), row.trials or 0),
    ]


def _share(value: float, digits: int = 0) -> Cell:
    return f"{value:.{digits}%}", value


def _lead(lead: Interval | None) -> Cell:
    return points(lead), -9 if lead is None else lead.mean


def _kinds_table(comparison: Comparison, rows: Sequence[Row]) -> str:
    heads = ["", *(f"{kind.replace('_', ' ')} ({count})" for kind, count in comparison.kinds.items())]
    lines = [
        (_style(row), [(row.name, row.name), *(_share(row.kinds[kind]) for kind in comparison.kinds)])
        for row in (comparison.unpruned, *rows)
    ]
    return f"<details><summary>Accuracy by kind of question</summary>{_table(heads, lines)}</details>"


def _style(row: Row) -> str:
    return "aside" if row.variant in (UNPRUNED, DOWNSCALED) else ""


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr class='{style}'>"
        + "".join(f"<td data-value='{escape(str(value))}'>{escape(shown)}</td>" for shown, value in cells)
        + "</tr>\n"
        for style, cells in rows
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _remarks(comparison: Comparison) -> str:
    said = {row.name: row.remark for row in comparison.rows if row.remark}
    lines = [f"<b>{escape(name)}</b>: {escape(remark)}." for name, remark in said.items()]
    lines += [f"<b>Left out</b>: {escape(name)}: {escape(why)}" for name, why in comparison.left_out.items()]
    return "".join(f"<p class='soft'>{line}</p>" for line in lines)


def _pictures(strips: Sequence[Strip]) -> str:
    if not strips:
        return ""
    found = [f"<h2>What each sees, at {strips[0].budget:g}</h2><p class='soft'>A patch is as bright as the share of "
             "the language model's layers that see it.</p>"]  # fmt: skip
    for strip in strips:
        tiles = "".join(
            f"<div class='tile'><img src='{tile.picture}' alt='what {escape(tile.name)} sees'>{escape(tile.name)}<br>"
            f"<span class='{_look(tile.right)}'>{escape(tile.answer)}</span>"
            "</div>"
            for tile in strip.tiles
        )
        found.append(f"<p><b>{escape(strip.question)}</b></p><div class='strip'>{tiles}</div>")
    return "".join(found)


def _look(worth: float | None) -> str:
    return "soft" if worth is None else "right" if worth >= RIGHT else "wrong"


def _predictors(comparison: Comparison) -> str:
    groups = list(next(iter(comparison.predictors.values())))
    rows: list[tuple[str, list[Cell]]] = [
        ("", [(name, name), *((correlation(found[group]), found[group] or 0.0) for group in groups)])
        for name, found in comparison.predictors.items()
    ]
    return (
        "<h2>Can accuracy be foreseen without answers?</h2><p class='soft'>Spearman rank correlation of label-free "
        "measures with accuracy, over all contenders and within each budget; 1: they rank as accuracy does. A search "
        "minimises the first.</p>" + _table(["", *groups], rows)
    )
