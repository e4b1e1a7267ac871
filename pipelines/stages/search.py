"""Stage search: find the config of least discrepancy under the budget, every trial tracked in MLflow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial
from rich.markup import escape

from pipelines.cluster import check_pairing, follow, launch
from pipelines.console import console
from pipelines.data import load_samples
from pipelines.figures.ranked_trials import RANKED, write_ranked
from pipelines.model import open_model
from pipelines.progress import study_progress
from pipelines.results import write_results, write_settings
from pipelines.settings import Settings
from pipelines.space import check_device, make_space, study_latency
from pipelines.stages.calibrate import observed
from pipelines.storage import named, open_storage
from pipelines.tracking import keep_with_study, study_runs
from search.credentials import masked
from search.objective import Objective, measure_named
from search.queue import fill
from search.reaper import Reaper
from search.space import Space
from search.study import best_trials, discrepancy, done_trials, open_study, spent
from search.tracking import Tracker, check_store
from search.tuned import TUNED
from search.worker import interruptible, run_worker


def run(settings: Settings) -> optuna.Study:
    """Run the study to its target, or go on with it; returns it.

    Raises:
        FlowpruneError: bad settings, an unreachable storage or tracking store, a study of other settings.
    """
    check(settings)
    search = join(settings)
    study, target = search.study, settings.search.trials
    dead = Reaper(study, target).reap(study.get_trials(deepcopy=False))
    if dead:
        console.print(f"[yellow]trials {dead} were left by a process that died: failed, and queued once more[/]")
    with tracked(settings, study) as tracker:
        if settings.cluster.kind == "none":
            with interruptible(study, target), study_progress(study, target) as show:
                work(search, target, tracker, show)
        elif len(done_trials(study)) < target:
            fill(study, target)
            launch(settings, target - len(done_trials(study)))
            follow(settings, study)
    conclude(settings, study)
    for part in settings.each_budget():
        trials = [trial for trial in done_trials(study) if spent(trial).asked == part.budget.budgets[0]]
        keep_with_study(part, write_ranked(part, trials), RANKED)
    return study


def check(settings: Settings) -> None:
    """Say what would keep a search from running, before anything expensive.

    Raises:
        FlowpruneError: settings that do not go together, an unreachable storage or tracking store.
    """
    check_pairing(settings)
    open_storage(settings.storage)
    check_store(settings.tracking.uri, settings.tracking.experiment)


@dataclass(frozen=True)
class Search:
    """What a worker works with."""

    study: optuna.Study
    space: Space
    objective: Objective
    worker: int


def join(settings: Settings, worker: int = 0) -> Search:
    """Open everything that trials need, and the study, which is created if need be.

    Args:
        settings: of the run.
        worker: number of this worker among those of the study.

    Raises:
        FlowpruneError: bad settings, an unreachable storage, a study of other settings.
    """
    storage = open_storage(settings.storage)
    samples = load_samples(settings.data, "calibration", settings.seed)
    calibration = observed(settings, samples, "calibration")
    opened = open_model(settings.model)
    measure = measure_named(settings.search.objective, opened.modules)
    objective = Objective(opened.modules, calibration.samples, settings.search.batch_size, settings.seed, measure)
    latency = study_latency(settings, opened, calibration, objective.workload)
    space = make_space(settings, opened.modules.geometry, objective.workload, opened.normalization, latency)
    description = space.describe() | {
        "model": opened.tuned_for.model_dump(),
        "data": calibration.data_digest,
        "samples": len(calibration.samples),
        "seed": settings.seed,
        "sampler": settings.sampler,
        "startup": settings.search.startup,
        "early_stopping": settings.search.early_stopping,
    }
    if settings.search.objective != "discrepancy":
        description["objective"] = settings.search.objective
    if latency is not None:
        description["latency"] = latency.model_dump()
    study = open_study(
        storage,
        settings.study,
        description,
        settings.sampler,
        settings.search.startup,
        settings.seed,
        settings.search.early_stopping,
        worker,
        objectives=2 if settings.search.pareto else 1,
        guesses=space.guesses,
    )
    return Search(study, space, objective, worker)


def work(search: Search, target: int, tracker: Tracker, show: Callable[[], None] = lambda: None) -> None:
    """Run trials until the study has that many, whoever ran them.

    Args:
        search: from :func:`join`.
        target: finished trials of the study.
        tracker: told of each trial.
        show: called after each trial that ends here.
    """
    check_device(search.study, search.objective.modules.text_model.device)

    def on_end(trial: FrozenTrial) -> None:
        tracker.end_trial(trial)
        show()

    run_worker(
        search.study,
        search.space,
        search.objective,
        target,
        lambda trial: tracker.start_trial(trial.number),
        on_end,
        search.worker,
    )


@contextmanager
def tracked(settings: Settings, study: optuna.Study, beside_others: bool = False) -> Iterator[Tracker]:
    """Keep MLflow in step with the study inside the block; what a lost server misses is said, and stops nothing.

    Args:
        settings: name the tracking store.
        study: the study.
        beside_others: see :class:`search.tracking.Tracker`.
    """
    tracker = Tracker(study_runs(settings, study), beside_others)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    finally:
        end_tracking(settings, tracker, status)


def end_tracking(settings: Settings, tracker: Tracker, status: str) -> None:
    """Close a tracker, and say what it could not log; ``status`` is MLflow's word for how the search ended."""
    tracker.close(status)
    if tracker.lost:
        console.print(
            f"[yellow]MLflow at {masked(settings.tracking.uri)} was lost ({escape(tracker.lost)}); trials are safe "
            f"in {named(settings.storage)}: flowprune stages=[sync], or the next run of this study, logs them.[/]"
        )


def conclude(settings: Settings, study: optuna.Study) -> None:
    """Write what the study found, and keep it with its run."""
    keep_with_study(settings, [write_settings(settings), *write_results(settings, study)])
    for part in settings.each_budget():
        keep_with_study(part, [part.folder / TUNED])
    for best in best_trials(study).values():
        console.print(
            f"best of {len(done_trials(study))} trials: discrepancy {discrepancy(best):.4f} at {spent(best).measure} "
            f"{spent(best).met:.4g} (trial {best.number})"
        )
