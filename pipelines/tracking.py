"""The study's MLflow run: kept in step with the study, and given a stage's files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.storage import named
from pipelines.workspace import Workspace
from search.credentials import masked
from search.tracking import StudyRuns, Tracker, keep_files, open_store, register, trials_page

CANCELLED = "KILLED"  # MLflow's word


def study_runs(workspace: Workspace, study: optuna.Study) -> StudyRuns:
    """The study's runs in the settings' tracking store."""
    tracking = workspace.settings.tracking
    artifacts = None if tracking.artifacts is None else Path(tracking.artifacts)
    return StudyRuns(open_store(tracking.uri), study, tracking.experiment, artifacts)


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
        keep_files(workspace.settings.tracking.uri, study, paths, inside)
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")


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
        found = register(workspace.settings.tracking.uri, study, workspace.settings.model.name, path)
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")
        return
    if found is not None:
        rank = " (champion)" if found.is_champion else ""
        console.print(f"registered: {found.name}/{found.version}{rank}")


def say_how_to_compare(workspace: Workspace) -> None:
    """Print how to open the study's trials in the MLflow UI."""
    study, uri = workspace.known_study, workspace.settings.tracking.uri
    page = None if study is None else trials_page(uri, study)
    if page is not None:
        if not uri.startswith("http"):
            console.print(f"compare the trials: [bold]mlflow ui --backend-store-uri {masked(uri)}[/]", soft_wrap=True)
        console.print(f"then open {page}", soft_wrap=True, highlight=False)


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
    except KeyboardInterrupt:
        status = CANCELLED
        raise
    finally:
        end_tracking(workspace, tracker, status)


def end_tracking(workspace: Workspace, tracker: Tracker, status: str) -> None:
    """Close a tracker, and say what it could not log; ``status`` is MLflow's word for how the search ended."""
    tracker.close(status)
    if tracker.lost:
        console.print(
            f"[yellow]MLflow at {masked(workspace.settings.tracking.uri)} was lost ({escape(tracker.lost)}); trials "
            f"are safe in {named(workspace.settings.storage)}: "
            f"flowprune stages=\\[sync], or the next run of this study, logs them.[/]"
        )
