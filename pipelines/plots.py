"""Pictures of a search."""

from pathlib import Path
from typing import Any

import matplotlib
import optuna

from search.study import done_trials, stopped_early

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

    history.scatter([t.number for t in complete], [t.value for t in complete], color=BLUE, s=16, label="complete")
    history.scatter(
        [t.number for t in stopped],
        [t.value for t in stopped],
        color=GREY,
        s=12,
        marker="x",
        label="stopped early (estimated)",
    )
    best, so_far = float("inf"), []
    for trial in complete:
        best = min(best, trial.value or best)
        so_far.append(best)
    history.step([t.number for t in complete], so_far, where="post", color=ORANGE, label="best so far")
    history.set(xlabel="trial", ylabel="discrepancy", yscale="log", title=study.study_name)
    history.legend(frameon=False)

    layers = study.user_attrs["settings"]["model"]["layers"]
    for rank, trial in enumerate(sorted(complete, key=lambda t: t.value or 0)[:5]):
        schedule = trial.user_attrs["config"]["schedule"]
        share, left = [], 1.0
        ratios = {step["layer"]: step["keep_ratio"] for step in schedule}
        for layer in range(layers):
            left *= ratios.get(layer, 1.0)
            share.append(left)
        look: dict[str, Any] = {"color": BLUE if rank else ORANGE, "alpha": 1 - 0.17 * rank, "zorder": 9 - rank}
        schedules.step(range(layers), share, where="mid", label=f"trial {trial.number}: {trial.value:.4f}", **look)
    schedules.set(
        xlabel="language-model layer", ylabel="share of visual tokens seen", ylim=(0, None), title="best five"
    )
    schedules.legend(frameon=False)
    for axes in (history, schedules):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
