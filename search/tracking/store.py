"""The tracking store: a server, or a local database."""

import logging
import os
import re
from functools import cache
from pathlib import Path
from textwrap import shorten

import mlflow
from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.exceptions import StorageInternalError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from multimodal import FlowpruneError
from search.credentials import masked

LOST = (MlflowException, OSError, SQLAlchemyError, StorageInternalError)  # what a store or storage that fails raises

CLIENT = {  # how MLflow's client behaves, unless the environment says otherwise
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # once a run, with the address's credentials
}

SQLITE = "sqlite:///"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on the table of runs

MEANINGS = {  # of what the libraries below say at length
    "refused": "connection refused",
    "timed out": "no answer in time",
    "Failed to resolve": "no such host",
    "too many 500 error responses": "its server fails with error 500, as with a full disk",
}


@cache
def open_store(uri: str) -> MlflowClient:
    """A client of a tracking store; a second call returns the same. A server is not asked whether it is there.

    Args:
        uri: a server, or a local database, which is created.

    Raises:
        FlowpruneError: a database cannot be opened.
    """
    for name, value in CLIENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    try:
        if uri.startswith(SQLITE):
            Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        if not uri.startswith("http"):
            _try(uri)
        mlflow.set_tracking_uri(uri)
        return MlflowClient(uri)
    except (*LOST, ImportError) as error:
        raise FlowpruneError(unreachable(uri, error)) from error


def _try(uri: str) -> None:
    """Open a database, which MLflow itself would try for minutes."""
    with create_engine(uri).connect() as connection:
        if uri.startswith(SQLITE):
            connection.execute(text("PRAGMA schema_version"))  # reads it: any file can be opened
            path = Path(uri.removeprefix(SQLITE))
            if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                raise OSError(f"{path} is read-only")


def overrides_of(uri: str) -> dict[str, str]:
    """The settings that name a store on a command line, in any folder and without credentials."""
    if uri.startswith(SQLITE):
        uri = SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return {"tracking": "server" if uri.startswith("http") else "local", "tracking.uri": masked(uri)}


def check_store(uri: str, experiment: str) -> None:
    """Ask a tracking store whether it is there and takes an experiment's runs.

    Raises:
        FlowpruneError: it does not answer, it refuses the credentials, or the experiment was deleted.
    """
    try:
        find_experiment(open_store(uri), experiment)
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error


def find_experiment(client: MlflowClient, name: str) -> Experiment | None:
    """The experiment of that name, if there is one.

    Raises:
        FlowpruneError: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != LifecycleStage.ACTIVE:
        raise FlowpruneError(f"The MLflow experiment {name!r} was deleted: restore it, or set tracking.experiment.")
    return found


def make_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> Experiment:
    """The experiment of that name, which is made if there is none.

    Args:
        client: see :func:`open_store`.
        name: the experiment's.
        artifacts: folder of a local store's artifacts; None with a server, which has its own.

    Raises:
        FlowpruneError: it was deleted.
    """
    if (found := find_experiment(client, name)) is not None:
        return found
    location = None if artifacts is None else artifacts.absolute().as_uri()
    try:
        client.create_experiment(name, location, KIND)
    except MlflowException as error:  # another worker was first
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return make_experiment(client, name, artifacts)


def unreachable(uri: str, error: Exception) -> str:
    """One sentence on a store that could not be used, and what to do."""
    said = str(error)
    if any(sign in said for sign in ("error code 401", "error code 403", "password authentication failed")):
        return (
            f"The MLflow tracking store at {masked(uri)} refused the credentials: set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or those in MLFLOW_TRACKING_URI."
        )
    if isinstance(error, ImportError):
        return f"The MLflow tracking store {masked(uri)} needs a driver ({error}): install it, or set tracking.uri."
    return f"No MLflow tracking store answers at {masked(uri)} ({reason(error)}): start it, or set tracking.uri."


def reason(error: Exception) -> str:
    """The gist of a store's error, without credentials."""
    said = re.sub(r"API request to \S+ failed with (exception )?", "", str(error).strip())
    for sign, meaning in MEANINGS.items():
        if sign in said:
            return meaning
    return shorten(masked(said.splitlines()[0] if said else type(error).__name__), 160, placeholder="…").rstrip(".")
