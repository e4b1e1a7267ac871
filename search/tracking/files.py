"""A study's files: kept with its MLflow run, and read back as data."""

from collections.abc import Sequence
from pathlib import Path

import optuna

from multimodal import FlowpruneError
from search.credentials import masked
from search.tracking.facts import RUN
from search.tracking.store import LOST, open_store, reason


def keep_files(uri: str, study: optuna.Study, paths: Sequence[Path], folder: str | None = None) -> None:
    """Keep files with a study's run, if it has one.

    Args:
        uri: of the tracking store.
        study: the study.
        paths: the files, which stay where they are.
        folder: of the run's artifacts.

    Raises:
        FlowpruneError: the tracking store does not take one.
    """
    run_id = study.user_attrs.get(RUN)
    if run_id is None:
        return
    for path in paths:
        try:
            open_store(uri).log_artifact(run_id, str(path), folder)
        except LOST as error:
            raise FlowpruneError(
                f"MLflow at {masked(uri)} did not take {path.name} ({reason(error)}): the files are in {path.parent}."
            ) from error
