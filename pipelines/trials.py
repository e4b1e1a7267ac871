"""Join a study, and run its trials: what a search does in this process, and what every worker does."""

from collections.abc import Callable
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial

from pipelines.calibration import observed
from pipelines.console import console
from pipelines.latency import check_device, study_latency
from pipelines.prompts import build_inputs
from pipelines.space import make_space, method_choices, prompts_of, with_equal_shares
from pipelines.storage import open_storage
from pipelines.workspace import Workspace
from search.objective import Objective, measure_named
from search.space import Space
from search.study import label_study, open_study
from search.tracking import Tracker
from search.worker import run_worker


@dataclass(frozen=True)
class Search:
    """What a worker works with."""

    study: optuna.Study
    space: Space
    objective: Objective
    worker: int


def join(workspace: Workspace, worker: int = 0) -> Search:
    """Open everything that trials need, and the study, which is created if need be.

    Args:
        workspace: of the run.
        worker: number of this worker among those of the study.

    Raises:
        FlowpruneError: bad settings, an unreachable storage, a study of other settings.
    """
    settings = workspace.settings
    storage = open_storage(settings.storage)
    samples = workspace.samples("calibration")
    calibration = observed(workspace, samples, "calibration")
    opened = workspace.model
    measure = measure_named(settings.search.objective, opened.modules)
    objective = Objective(opened.modules, calibration.samples, settings.search.batch_size, settings.seed, measure)
    if objective.device.type != "cpu":
        console.print(objective.placement)
    latency = study_latency(workspace, opened, calibration, objective.workload)
    space = make_space(settings, opened.modules.geometry, objective.workload, opened.normalization, latency)
    description = space.describe() | {
        "model": opened.tuned_for.model_dump(),
        "processor": opened.processing,
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
    label_study(
        study,
        model=settings.model.name,
        data=settings.data.path or settings.data.source,
        trials=settings.search.trials,
    )
    return Search(study, space, objective, worker)


def check_budget(workspace: Workspace) -> None:
    """Refuse a budget that no pruning of these prompts can meet, before the model has looked at a picture.

    Raises:
        FlowpruneError: the budget is out of reach, or the method has no such parameter.
    """
    settings = with_equal_shares(workspace.settings)
    if len(method_choices(settings)) > 1 or settings.budget.measure == "latency_ms":
        return  # leaves out those that cannot meet it; needs measurements
    opened = workspace.model
    inputs = (build_inputs(opened, [sample]) for sample in workspace.samples("calibration"))
    make_space(settings, opened.modules.geometry, prompts_of(opened.modules.geometry, inputs), opened.normalization)


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
