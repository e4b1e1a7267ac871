"""What is read back from MLflow on any machine, as data: JSON that is validated, at paths that flowprune wrote."""

import json
import re
import tempfile
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from multimodal import FlowpruneError, PruningConfig
from multimodal.options import FILE_NAME
from search.credentials import masked
from search.files import SNAPSHOT, TUNED
from search.tracking.facts import CONFIG
from search.tracking.registry import digest, exported_file, find_version
from search.tracking.store import LOST, open_store, reason, unreachable


def config_of_run(uri: str, run_id: str) -> PruningConfig:
    """The config of a study's run, exported or else tuned, or of a budget's or a trial's run.

    Args:
        uri: of the tracking store.
        run_id: of the run.

    Raises:
        FlowpruneError: the store does not answer, or the run is unknown or has no config.
    """
    try:
        return _of_run(open_store(uri), uri, run_id)
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error


def config_registered(uri: str, registered: str) -> PruningConfig:
    """A config of the model registry.

    Args:
        uri: of the tracking store.
        registered: see :func:`search.tracking.registry.find_version`.

    Raises:
        FlowpruneError: the store does not answer, it has no such config, or its file was changed.
    """
    client = open_store(uri)
    try:
        run_id, path, expected = exported_file(find_version(client, registered))
        return _parsed(_download(client, run_id, path, expected), f"{path} of run {run_id}")
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error


def study_of_run(uri: str, run_id: str) -> str:
    """The snapshot of a study that its run keeps.

    Args:
        uri: of the tracking store.
        run_id: of the study's run.

    Raises:
        FlowpruneError: the store does not answer, or the run is unknown, a trial's, or has no snapshot.
    """
    client = open_store(uri)
    try:
        tags = _tags(client, uri, run_id)
        if tags["kind"] != "study" or SNAPSHOT not in {file.path for file in client.list_artifacts(run_id)}:
            raise FlowpruneError(
                f"Run {run_id} keeps no {SNAPSHOT}: give the run of a study whose search came to its end."
            )
        return _download(client, run_id, SNAPSHOT)
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error


def _tags(client: MlflowClient, uri: str, run_id: str) -> dict[str, str]:
    unknown = FlowpruneError(f"MLflow at {masked(uri)} knows no flowprune run {run_id!r}: copy its id.")
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise unknown
    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise unknown from error
    if tags.get("kind") not in ("trial", "study", "budget"):
        raise unknown
    return dict(tags)


def _of_run(client: MlflowClient, uri: str, run_id: str) -> PruningConfig:
    tags = _tags(client, uri, run_id)
    if tags["kind"] == "trial":
        if CONFIG not in tags:
            raise FlowpruneError(f"Run {run_id} is of a trial that has no result: choose another.")
        return _parsed(tags[CONFIG], f"The config of run {run_id}")
    files = {file.path for file in client.list_artifacts(run_id)}
    for name in (FILE_NAME, TUNED):
        if name in files:
            return _parsed(_download(client, run_id, name), f"{name} of run {run_id}")
    if CONFIG in tags:
        return _parsed(tags[CONFIG], f"The config of run {run_id}")
    raise FlowpruneError(
        f"The study of run {run_id} has no config yet, or one for each of several budgets: give the run id of a budget "
        "or trial, or registered=NAME."
    )


def _download(client: MlflowClient, run_id: str, path: str, expected: str | None = None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(client.download_artifacts(run_id, path, folder)).resolve()
        except LOST as error:
            raise FlowpruneError(_gone(client, run_id, path, error)) from error
        if not file.is_relative_to(Path(folder).resolve()) or not file.is_file():
            raise FlowpruneError(f"{path} of run {run_id} is not a file: keep it again.")
        if expected is not None and digest(file) != expected:
            raise FlowpruneError(f"{path} of run {run_id} was changed after it was registered: export it again.")
        return file.read_text(encoding="utf-8", errors="replace")


def _gone(client: MlflowClient, run_id: str, path: str, error: Exception) -> str:
    where = str(client.get_run(run_id).info.artifact_uri)
    return (
        f"{path} of run {run_id} cannot be read from {masked(where)} ({reason(error)}): put the store's files back "
        "there, or set tracking.artifacts to the folder that they were moved to."
    )


def _parsed(text: str, what: str) -> PruningConfig:
    try:
        return PruningConfig(**json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise FlowpruneError(f"{what} is not a valid config ({error}): export it again.") from error
