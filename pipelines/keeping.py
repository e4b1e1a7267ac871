"""Keep a stage's files with the study's MLflow run."""

from collections.abc import Sequence
from pathlib import Path

import optuna

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.settings import Settings
from search.study import sqlite_storage
from search.tracking import log_to_study


def keep_with_study(settings: Settings, paths: Sequence[Path], folder: str | None = None) -> None:
    """Log files to the study's run; a store that does not answer is said, and stops nothing.

    Args:
        settings: name the study and the tracking store.
        paths: the files, which stay where they are.
        folder: of the artifacts.
    """
    if not Path(settings.storage.path).exists():
        return
    storage = sqlite_storage(Path(settings.storage.path))
    if settings.study not in optuna.get_all_study_names(storage):
        return
    study = optuna.load_study(study_name=settings.study, storage=storage)
    try:
        log_to_study(settings.tracking.uri, study, list(paths), folder)
    except FlowpruneError as error:
        console.print(f"[yellow]{error} The files are in {paths[0].parent}.[/]")
