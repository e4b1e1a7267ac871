"""Picture of a front: what each trial spent and how much it lost, and the best schedule of each budget."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from pipelines.figures.search_history import BLUE, ORANGE, draw_schedules, plt
from search.study import discrepancy, done_trials, spent


def plot_front(study: optuna.Study, best: Sequence[FrozenTrial], path: Path) -> None:
    """Discrepancy over what was spent, later trials darker and the best of each budget joined; and their schedules.

    Args:
        study: of two objectives.
        best: the best trial of each budget, the least budget first.
        path: of the PNG.
    """
    done, met = done_trials(study), [spent(trial).met for trial in best]
    figure, (front, schedules) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    shades = [0.15 + 0.6 * place / len(done) for place in range(len(done))]
    front.scatter([spent(t).met for t in done], [discrepancy(t) for t in done], s=14, color=BLUE, alpha=shades)
    front.plot(met, [discrepancy(trial) for trial in best], "o-", color=ORANGE, label="best of each budget")
    front.set(xlabel=spent(best[0]).measure, ylabel="discrepancy", xscale="log", yscale="log", title=study.study_name)
    front.set_xticks(met, [f"{each:.3g}" for each in met])
    front.xaxis.set_minor_formatter(plt.NullFormatter())
    front.legend(frameon=False)
    draw_schedules(schedules, study, best[::-1])
    schedules.set(title="best of each budget")
    for axes in (front, schedules):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
