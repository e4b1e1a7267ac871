"""The study's MLflow run: kept in step with the study, and given a stage's files."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import optuna
from rich.markup import escape

from multimodal import FlowpruneError, PruningConfig
from pipelines.commands import command
from pipelines.console import console
from pipelines.report_metrics import registry_figures, validated
from pipelines.stopping import WorkersGoOn
from pipelines.storage import named
from pipelines.validation_report import validation_of
from pipelines.workspace import Workspace
from search.credentials import masked
from search.tracking import (
    Samples,
    StudyRuns,
    Tracker,
    check_store,
    follow_moved,
    keep_files,
    log_found,
    open_store,
    register,
    studies_page,
    trials_page,
)


def store_of(workspace: Workspace) -> str:
    """The address of the tracking store; a local one that was moved with its project finds its files again."""
    tracking = workspace.settings.tracking
    if tracking.artifacts is not None:
        _follow_moved(tracking.uri, Path(tracking.artifacts).absolute())
    return tracking.uri


@cache
def _follow_moved(uri: str, artifacts: Path) -> None:
    """Once a process, under which no project is moved."""
    follow_moved(uri, artifacts)


def check_tracking(workspace: Workspace) -> None:
    """Ask the tracking store whether it is there.

    Raises:
        FlowpruneError: it does not answer, it refuses the credentials, or the experiment was deleted.
    """
    check_store(store_of(workspace), workspace.settings.tracking.experiment)


CANCELLED = "KILLED"  # MLflow's word


def study_runs(workspace: Workspace, study: optuna.Study) -> StudyRuns:
    """The study's runs in the settings' tracking store."""
    tracking = workspace.settings.tracking
    artifacts = None if tracking.artifacts is None else Path(tracking.artifacts)
    return StudyRuns(open_store(store_of(workspace)), study, tracking.experiment, artifacts)


def keep_with_study(workspace: Workspace, paths: Sequence[Path], folder: str | None = None) -> None:
    """Keep files with the study's run; a store that does not take them is said, and stops nothing.

    Args:
        workspace: names the study and the tracking store.
        paths: the files, which stay where they are.
        folder: of the artifacts, inside the budget's own with search=pareto.
    """
    study = workspace.known_study
    if study is None:
        return
    try:
        inside = "/".join(name for name in (workspace.part, folder) if name) or None
        keep_files(store_of(workspace), study, paths, inside)
    except FlowpruneError as error:
        say_how_to_sync(workspace, error)


def log_with_study(workspace: Workspace, metrics: Mapping[str, float], samples: Samples | None = None) -> None:
    """Log what was found with the run of the study, or of its budget; a store that does not take it is said, and stops
    nothing.

    Args:
        workspace: names the study, the budget and the tracking store.
        metrics: by name.
        samples: what they were measured on.
    """
    study = workspace.known_study
    if study is None:
        return
    budget = None if workspace.part is None else workspace.settings.budget.budgets[0]
    try:
        log_found(store_of(workspace), study, budget, metrics, samples)
    except FlowpruneError as error:
        say_how_to_sync(workspace, error)


def samples_of(workspace: Workspace, part: str, digest: str, count: int) -> Samples:
    """Samples as MLflow's datasets name them."""
    return Samples(workspace.settings.data.path or workspace.settings.data.source, part, digest, count)


def say_how_to_sync(workspace: Workspace, error: FlowpruneError) -> None:
    """Print what the tracking store did not take, and the command that logs it when the store is mended."""
    console.print(f"[yellow]{escape(str(error))}[/]")
    console.print(
        "when it is mended, this logs it:", escape(command(workspace, "sync")), soft_wrap=True, highlight=False
    )


def register_with_study(workspace: Workspace, path: Path) -> None:
    """Enter an exported config in the model registry; a store that does not take it is said, and stops nothing.

    Args:
        workspace: names the study, the model and the tracking store.
        path: of the exported file.
    """
    study = workspace.known_study
    if study is None:
        return
    try:
        found = register(store_of(workspace), study, workspace.settings.model.name, path, _figures(workspace, path))
    except FlowpruneError as error:
        say_how_to_sync(workspace, error)
        return
    if found is not None:
        rank = " (champion)" if found.is_champion else ""
        console.print(f"registered: {found.name}/{found.version}{rank}")


def _figures(workspace: Workspace, path: Path) -> dict[str, float]:
    """What validate found of an exported config, and what it keeps."""
    report = validation_of(workspace, PruningConfig.from_pretrained(path))
    if report is None:
        return {}
    return registry_figures(validated(report)) | {"retention": report["contenders"]["tuned"]["retention"]}


def say_how_to_compare(workspace: Workspace) -> None:
    """Print how to open the study's trials in the MLflow UI."""
    study, uri = workspace.known_study, workspace.settings.tracking.uri
    page = None if study is None else trials_page(uri, study)
    if study is not None and page is not None:
        if not uri.startswith("http"):
            console.print(f"compare the trials: [bold]mlflow ui --backend-store-uri {masked(uri)}[/]", soft_wrap=True)
        console.print(f"then open {page}", soft_wrap=True, highlight=False)
        console.print(f"all studies: {studies_page(uri, study)}", soft_wrap=True, highlight=False)


@contextmanager
def tracked(workspace: Workspace, study: optuna.Study, beside_others: bool = False) -> Iterator[Tracker]:
    """Keep MLflow in step with the study inside the block; what a lost server misses is said, and stops nothing.

    Args:
        workspace: names the tracking store.
        study: the study.
        beside_others: see :class:`search.tracking.Tracker`.
    """
    tracker = Tracker(study_runs(workspace, study), beside_others)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except WorkersGoOn:
        status = "RUNNING"
        raise
    except KeyboardInterrupt:
        status = CANCELLED
        raise
    finally:
        end_tracking(workspace, tracker, status)


def end_tracking(workspace: Workspace, tracker: Tracker, status: str | None) -> None:
    """Close a tracker, and say what it could not log; ``status`` is MLflow's word for how the search ended."""
    tracker.close(status)
    if tracker.lost:
        console.print(
            f"[yellow]MLflow at {masked(workspace.settings.tracking.uri)} was lost ({escape(tracker.lost)}); trials "
            f"are safe in {named(workspace.settings.storage)}: "
            "the next run of this study logs them, or this:[/]"
        )
        console.print(escape(command(workspace, "sync")), soft_wrap=True, highlight=False)
