"""Pictures of a search. Optuna's own know neither estimates of trials that stopped early nor schedules by layer."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib.axes import Axes
from optuna.trial import FrozenTrial

from search.study import discrepancy, done_trials, objective_name, stopped_early

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#9ca3af"


def plot_search(study: optuna.Study, path: Path) -> None:
    """History of the discrepancy, and the best trials' schedules as tokens by layer.

    Args:
        study: with at least one complete trial.
        path: of the PNG.
    """
    done = done_trials(study)
    complete = [trial for trial in done if not stopped_early(trial)]
    stopped = [trial for trial in done if stopped_early(trial)]
    figure, (history, schedules) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")

    history.scatter(
        [t.number for t in complete], [discrepancy(t) for t in complete], color=BLUE, s=16, label="complete"
    )
    history.scatter(
        [t.number for t in stopped],
        [discrepancy(t) for t in stopped],
        color=GREY,
        s=12,
        marker="x",
        label="stopped early (estimated)",
    )
    so_far = list(accumulate(map(discrepancy, complete), min))
    history.step([t.number for t in complete], so_far, where="post", color=ORANGE, label="best so far")
    history.set(xlabel="trial", ylabel=objective_name(study).replace("_", " "), yscale="log", title=study.study_name)
    history.legend(frameon=False)

    draw_schedules(schedules, study, sorted(complete, key=discrepancy)[:5])
    schedules.set(title="best five")
    for axes in (history, schedules):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_schedules(axes: Axes, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
    """Trials' schedules as tokens by layer, the first one emphasised."""
    layers = study.user_attrs["settings"]["model"]["layers"]
    for rank, trial in enumerate(trials):
        share, left = [], 1.0
        ratios = {step["layer"]: step["keep_ratio"] for step in trial.user_attrs["config"]["schedule"]}
        for layer in range(layers):
            left *= ratios.get(layer, 1.0)
            share.append(left)
        look: dict[str, Any] = {"color": BLUE if rank else ORANGE, "alpha": 0.83**rank, "zorder": 9 - rank}
        axes.step(range(layers), share, where="mid", label=f"trial {trial.number}: {discrepancy(trial):.4f}", **look)
    axes.set(xlabel="language-model layer", ylabel="share of visual tokens seen", ylim=(0, None))
    axes.legend(frameon=False)
