"""What a person sees of a study that runs: trials, the best discrepancy, workers, and when it will be done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import optuna
from optuna.trial import TrialState

from pipelines.console import progress_bar
from search.study import best_trials, discrepancy, done_trials, stopped_early


@contextmanager
def study_progress(study: optuna.Study, target: int) -> Iterator[Callable[..., None]]:
    """A progress bar of a study, brought up to date by calling what the block is given.

    Args:
        study: the study.
        target: trials it is to have.
    """
    with progress_bar() as progress:
        task = progress.add_task("searching", total=target, completed=len(done_trials(study)))

        def show(workers: str = "") -> None:
            progress.update(
                task, completed=len(done_trials(study)), description=f"searching ({describe(study, workers)})"
            )

        show()
        yield show


def describe(study: optuna.Study, workers: str = "") -> str:
    """A study in a few words: how its trials stand, and the best discrepancy of each budget.

    Args:
        study: the study.
        workers: how its workers stand, where that is known.
    """
    trials = study.get_trials(deepcopy=False)
    running = sum(trial.state == TrialState.RUNNING for trial in trials)
    failed = sum(trial.state == TrialState.FAIL for trial in trials)
    early = sum(map(stopped_early, trials))
    best = ", ".join(f"{discrepancy(trial):.4f}" for trial in best_trials(study).values())
    words = [workers] if workers else []
    words += [f"{running} trials running"] if workers else []
    words += [f"{early} stopped early"]
    words += [f"{failed} failed"] if failed else []
    words += [f"best {best}"] if best else []
    return ", ".join(words)
