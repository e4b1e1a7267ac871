"""Pictures of a study's parameters: which of them matter, and where the good trials lie."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from optuna.trial import FrozenTrial

from pipelines.figures.search_history import BLUE, GREY, ORANGE, plt
from search.study import discrepancy, done_trials

MOST_TICKS = 8


def plot_importance(study: optuna.Study, path: Path) -> None:
    """Draw the shares of the variance of being among the best trials (PED-ANOVA), over what the sampler suggested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that low targets are wanted
        shares = optuna.importance.get_param_importances(study, target=discrepancy)
    names = [_readable(name) for name in shares]
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.32 * len(names)), layout="constrained")
    bars = axes.barh(names[::-1], list(shares.values())[::-1], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(title=f"{study.study_name}: what decides the discrepancy", xlabel="importance")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _readable(name: str) -> str:
    """``share_0``: where in its range the first keep ratio lies; ``place_1``: where the second step does."""
    kind, _, number = name.rpartition("_")
    return {"share": f"keep_ratio_{number}", "place": f"layer_{number}"}.get(kind, name)


def plot_parallel(study: optuna.Study, path: Path) -> None:
    """Draw a line a trial through its parameters to its discrepancy, the best tenth coloured, the best one on top."""
    trials = sorted(done_trials(study), key=discrepancy, reverse=True)
    columns = {name: [trial.user_attrs["parameters"].get(name) for trial in trials] for name in _varied(trials)}
    scales = {name: _Scale(values) for name, values in columns.items()}
    scales["discrepancy"] = _Scale(list(map(discrepancy, trials)), logarithmic=True)
    heights = np.array([scale.heights for scale in scales.values()])
    figure, axes = plt.subplots(figsize=(1.25 * len(scales) + 1, 4.6), layout="constrained")
    places, best = range(len(scales)), max(1, len(trials) // 10)
    for rank, line in enumerate(heights.T):
        first, good = rank == len(trials) - 1, rank >= len(trials) - best
        colour = ORANGE if first else BLUE if good else GREY
        axes.plot(places, line, color=colour, linewidth=2 if first else 1, alpha=1 if first else 0.8 if good else 0.3)
    for place, (name, scale) in enumerate(scales.items()):
        axes.axvline(place, color="black", linewidth=0.6)
        _label(axes, place, name, scale)
    axes.set(title=f"{study.study_name}: {len(trials)} trials, the best tenth in blue, the best in orange")
    axes.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _label(axes: Axes, place: int, name: str, scale: "_Scale") -> None:
    look: dict[str, Any] = {"ha": "center", "fontsize": 8}
    axes.text(place, -0.12, name.replace("_", "\n"), va="top", fontweight="bold", **look)
    for height, text in scale.ticks:
        axes.text(
            place, height, text, va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, **look
        )


def _varied(trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of the parameters that are not the same in all trials."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.user_attrs["parameters"]))
    return [name for name in names if len({str(trial.user_attrs["parameters"].get(name)) for trial in trials}) > 1]


class _Scale:
    """One axis: values as heights in [0, 1], numbers by size and words by name, with a few ticks."""

    def __init__(self, values: Sequence[Any], logarithmic: bool = False) -> None:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        words = [] if numbers else sorted({str(value) for value in values})
        found = np.array([float(v) for v in values] if numbers else [float(words.index(str(v))) for v in values])
        logarithmic = numbers and found.min() > 0 and (logarithmic or found.max() / found.min() > 100)
        found = np.log(found) if logarithmic else found
        low, high = float(found.min()), float(found.max())
        self.heights = (found - low) / ((high - low) or 1.0)
        few = isinstance(values[0], int) and high - low < MOST_TICKS and numbers
        levels = np.unique(found) if words or few else np.linspace(low, high, 5)
        self.ticks = [
            (
                (level - low) / ((high - low) or 1.0),
                words[int(level)] if words else f"{np.exp(level) if logarithmic else level:.3g}",
            )
            for level in levels
        ]
