"""Keep a stage's files with the study's MLflow run."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.settings import Settings
from pipelines.storage import known_study
from search.credentials import masked
from search.tracking import StudyRuns, keep_files, open_store, register, trials_page


def study_runs(settings: Settings, study: optuna.Study) -> StudyRuns:
    """The study's runs in the settings' tracking store."""
    tracking = settings.tracking
    artifacts = None if tracking.artifacts is None else Path(tracking.artifacts)
    return StudyRuns(open_store(tracking.uri), study, tracking.experiment, artifacts)


def keep_with_study(settings: Settings, paths: Sequence[Path], folder: str | None = None) -> None:
    """Keep files with the study's run; a store that does not take them is said, and stops nothing.

    Args:
        settings: name the study and the tracking store.
        paths: the files, which stay where they are.
        folder: of the artifacts, inside the budget's own with search=pareto.
    """
    study = known_study(settings)
    if study is None:
        return
    try:
        inside = "/".join(name for name in (settings.part, folder) if name) or None
        keep_files(settings.tracking.uri, study, paths, inside)
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")


def register_with_study(settings: Settings, path: Path) -> None:
    """Enter an exported config in the model registry; a store that does not take it is said, and stops nothing.

    Args:
        settings: name the study, the model and the tracking store.
        path: of the exported file.
    """
    study = known_study(settings)
    if study is None:
        return
    try:
        found = register(settings.tracking.uri, study, settings.model.name, path)
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")
        return
    if found is not None:
        rank = " (champion)" if found.is_champion else ""
        console.print(f"registered: {found.name}/{found.version}{rank}")


def say_how_to_compare(settings: Settings) -> None:
    """Print how to open the study's trials in the MLflow UI."""
    study, uri = known_study(settings), settings.tracking.uri
    page = None if study is None else trials_page(uri, study)
    if page is not None:
        if not uri.startswith("http"):
            console.print(f"compare the trials: [bold]mlflow ui --backend-store-uri {masked(uri)}[/]", soft_wrap=True)
        console.print(f"then open {page}", soft_wrap=True, highlight=False)
