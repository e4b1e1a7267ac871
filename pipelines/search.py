"""Stage search: find the config of least discrepancy under the budget, every trial tracked in MLflow."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from rich.markup import escape

from multimodal import PruningConfig
from multimodal.costs import Workload
from multimodal.vision import Normalisation
from pipelines.calibrate import observed
from pipelines.console import console, progress_bar
from pipelines.data import load_samples
from pipelines.opened import open_model
from pipelines.results import RESULTS, TUNED, write_results
from pipelines.settings import Settings
from search.budget import share_of
from search.credentials import masked
from search.objective import Objective
from search.space import Space
from search.study import (
    best_trial,
    done_trials,
    fail_dead_trials,
    interruptible,
    open_study,
    run_worker,
    sqlite_storage,
    stopped_early,
)
from search.tracking import Tracker, connect, trial_metrics


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        config: the best trial's.
        path: where it was written.
        study: the study.
    """

    config: PruningConfig
    path: Path
    study: optuna.Study


def run(settings: Settings) -> SearchResult:
    """Run the study to its target, or go on with it.

    Raises:
        FlowpruneError: bad settings, an unreachable tracking store, a study of other settings.
    """
    client = connect(settings.tracking.uri)
    storage = sqlite_storage(Path(settings.storage.path))
    samples = load_samples(settings.data, "calibration", settings.seed)
    calibration = observed(settings, samples, "calibration")
    opened = open_model(settings.model)
    objective = Objective(opened.family, calibration.samples, settings.search.batch_size, settings.seed)
    space = make_space(settings, objective.workload, opened.pixels)
    description = space.describe() | {
        "model": opened.tuned_for.model_dump(),
        "data": calibration.data_digest,
        "samples": len(calibration.samples),
        "seed": settings.seed,
        "sampler": settings.search.sampler,
        "startup": settings.search.startup,
        "early_stopping": settings.search.early_stopping,
    }
    study = open_study(
        storage,
        settings.study,
        description,
        settings.search.sampler,
        settings.search.startup,
        settings.seed,
        settings.search.early_stopping,
    )
    dead = fail_dead_trials(study)
    if dead:
        console.print(f"[yellow]trials {dead} were left by a process that died: failed, and queued once more[/]")
    artifacts = settings.tracking.artifacts
    tracker = Tracker(client, study, settings.tracking.experiment, description, Path(artifacts) if artifacts else None)
    status = "FAILED"
    try:
        with interruptible(study):
            _run_trials(settings, study, space, objective, tracker)
        config = write_results(settings, study)
        for name in RESULTS:
            tracker.log_artifact(Path(settings.output) / name)
        tracker.log_metrics(trial_metrics(best_trial(study)))
        status = "FINISHED"
    finally:
        tracker.close(status)
        if tracker.lost:
            console.print(
                f"[yellow]MLflow at {masked(settings.tracking.uri)} was lost ({escape(tracker.lost)}); trials are safe "
                f"in {settings.storage.path} and will be logged by the next run of this study.[/]"
            )
    best = best_trial(study)
    console.print(f"best of {len(done_trials(study))} trials: discrepancy {best.value:.4f} (trial {best.number})")
    return SearchResult(config, Path(settings.output) / TUNED, study)


def make_space(settings: Settings, workload: Workload, pixels: Normalisation) -> Space:
    """The search space of the settings.

    Args:
        settings: method, budget and schedule.
        workload: the prompts that meet the budget together.
        pixels: mean and standard deviation of the image processor.

    Raises:
        FlowpruneError: the budget cannot be met.
    """
    return Space(
        method=settings.method.name,
        fixed=settings.method.fixed,
        ranges=settings.method.ranges,
        measure=settings.budget.measure,
        budgets=settings.budget.budgets,
        cost=share_of(workload, settings.budget.measure),
        steps=settings.search.steps,
        layers=workload.layers,
        positions=settings.search.positions,
        layouts=workload.layouts,
        pixels=pixels,
    )


def _run_trials(settings: Settings, study: optuna.Study, space: Space, objective: Objective, tracker: Tracker) -> None:
    with progress_bar() as progress:
        task = progress.add_task("searching", total=settings.search.trials, completed=len(done_trials(study)))

        def on_end(trial: FrozenTrial) -> None:
            tracker.end_trial(trial)
            done = done_trials(study)
            complete = [t.value for t in done if not stopped_early(t) and t.value is not None]
            best = f", best {min(complete):.4f}" if complete else ""
            description = f"searching ({len(done) - len(complete)} stopped early{best})"
            progress.update(task, completed=len(done), description=description)

        run_worker(
            study, space, objective, settings.search.trials, lambda trial: tracker.start_trial(trial.number), on_end
        )
