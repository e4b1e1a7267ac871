"""Keep a stage's files with the study's MLflow run."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.settings import Settings
from pipelines.storage import known_study
from search.tracking import log_to_study, trials_page


def keep_with_study(settings: Settings, paths: Sequence[Path], folder: str | None = None) -> None:
    """Log files to the study's run; a store that does not answer is said, and stops nothing.

    Args:
        settings: name the study and the tracking store.
        paths: the files, which stay where they are.
        folder: of the artifacts.
    """
    study = known_study(settings)
    if study is None:
        return
    try:
        log_to_study(settings.tracking.uri, study, list(paths), folder)
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))} The files are in {paths[0].parent}.[/]")


def say_how_to_compare(settings: Settings) -> None:
    """Print how to open the study's trials in the MLflow UI."""
    study, uri = known_study(settings), settings.tracking.uri
    try:
        page = None if study is None else trials_page(uri, study)
    except FlowpruneError as error:
        console.print(f"[yellow]{error}[/]")
        return
    if page is not None:
        if not uri.startswith("http"):
            console.print(f"compare the trials: [bold]mlflow ui --backend-store-uri {uri}[/]", soft_wrap=True)
        console.print(f"then open {page}", soft_wrap=True, highlight=False)
