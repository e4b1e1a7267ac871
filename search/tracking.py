"""MLflow tracking: one parent run a study, one child run a trial, off the trial's critical path.

Optuna keeps the truth; MLflow is made to agree with it. A lost server never loses a trial: what could not be logged is
logged by :meth:`Tracker.sync` when the server is back or at the next run, exactly once.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any
from urllib.parse import quote

import mlflow
import optuna
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from multimodal import FlowpruneError
from search.credentials import masked
from search.study import outcome, stopped_early

STATUS = {TrialState.COMPLETE: "FINISHED", TrialState.FAIL: "FAILED"}
PAUSE_SECONDS = 30  # between tries at a store that was lost
LOST = (MlflowException, OSError, SQLAlchemyError)


@cache
def connect(uri: str) -> MlflowClient:
    """A client of a tracking store that answers; a second call returns the same.

    Args:
        uri: a server, or a local database, which is created.

    Raises:
        FlowpruneError: it does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    try:
        client.search_experiments(max_results=1)
    except LOST as error:
        reason = "connection refused" if "refused" in str(error) else shorten(masked(str(error)), 120, placeholder="…")
        raise FlowpruneError(
            f"No MLflow tracking store answers at {masked(uri)} ({reason}): start it, or set tracking.uri."
        ) from error
    return client


class Tracker:
    """Keeps MLflow in step with one study, from a background thread.

    Args:
        client: see :func:`connect`.
        study: the study; its user attributes hold the parent run's id.
        experiment: name of the MLflow experiment, one a model.
        parameters: of the search, logged on the parent.
        artifacts: folder of a local store's artifacts; None with a server, which has its own.

    Raises:
        FlowpruneError: the store does not answer.
    """

    def __init__(
        self,
        client: MlflowClient,
        study: optuna.Study,
        experiment: str,
        parameters: Mapping[str, Any],
        artifacts: Path | None,
    ) -> None:
        self._client = client
        self._study = study
        self._children: dict[int, str] = {}
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._owed: list[Callable[[], object]] = []  # what a lost store did not take
        self.lost: str | None = None
        try:
            run = self._known_parent() or self._new_parent(self._experiment(experiment, artifacts))
            self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
            params = [Param(name, str(value)[:500]) for name, value in parameters.items()]
            client.log_batch(self.run_id, params=params)
            client.update_run(self.run_id, status="RUNNING")
            self.sync()
        except LOST as error:
            raise FlowpruneError(
                f"MLflow did not take the search's run ({masked(str(error))}): check tracking.uri."
            ) from error
        self._thread = threading.Thread(target=self._log_queued, name="flowprune-tracking", daemon=True)
        self._thread.start()

    def start_trial(self, number: int) -> None:
        """Create a trial's run."""
        began = _now()
        self._work.put(lambda: self._create_child(number, began))

    def end_trial(self, trial: FrozenTrial) -> None:
        """Log a trial that ended."""
        self._work.put(lambda: self._log(trial))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the study's run."""
        self._work.put(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Note figures on the study's run."""
        now = _now()
        entities = [Metric(name, value, now, 0) for name, value in metrics.items()]
        self._work.put(lambda: self._client.log_batch(self.run_id, metrics=entities))

    def close(self, status: str = "FINISHED") -> None:
        """Wait for what is queued, log what was lost, and end the study's run."""
        self._work.put(None)
        self._thread.join()
        try:
            for work in self._owed:
                work()
            self.sync()
            self._client.set_terminated(self.run_id, status)
            self.lost = None
        except LOST as error:
            self.lost = masked(str(error).strip().splitlines()[0])

    def sync(self) -> None:
        """Make MLflow agree with the study: every trial that ended has one run that ended."""
        runs = self._child_runs()
        for trial in self._study.get_trials(deepcopy=False):
            run = runs.get(trial.number)
            if run is not None:
                self._children[trial.number] = run.info.run_id
            if trial.state.is_finished() and (run is None or run.info.status == "RUNNING"):
                self._log(trial)

    def _log_queued(self) -> None:
        quiet_until = 0.0
        while (work := self._work.get()) is not None:
            if time.monotonic() < quiet_until:
                self._owed.append(work)
                continue
            try:
                work()
            except LOST as error:  # close() tries again; the study itself is safe with Optuna
                self._owed.append(work)
                self.lost = masked(str(error).strip().splitlines()[0])
                quiet_until = time.monotonic() + PAUSE_SECONDS

    def _experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        location = None if artifacts is None else artifacts.absolute().as_uri()
        return self._client.create_experiment(name, artifact_location=location)

    def _known_parent(self) -> Run | None:
        """The study's run, unless it belongs to another store or was deleted there."""
        known = self._study.user_attrs.get("mlflow_run")
        if known is None:
            return None
        try:
            run = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _new_parent(self, experiment_id: str) -> Run:
        tags = {"kind": "study", "study": self._study.study_name, "host": socket.gethostname()}
        run = self._client.create_run(experiment_id, tags=tags, run_name=self._study.study_name)
        self._study.set_user_attr("mlflow_run", run.info.run_id)
        return run

    def _child_runs(self) -> dict[int, Run]:
        found: dict[int, Run] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id], f"tags.`mlflow.parentRunId` = '{self.run_id}'", page_token=token
            )
            found |= {int(run.data.tags["trial"]): run for run in page}
            if not (token := page.token):
                return found

    def _create_child(self, number: int, began: int) -> str:
        if number not in self._children and self.lost:  # it may exist, and only the answer have been lost
            self._children |= {known: run.info.run_id for known, run in self._child_runs().items()}
        if number not in self._children:
            tags = {
                "mlflow.parentRunId": self.run_id,
                "kind": "trial",
                "study": self._study.study_name,
                "trial": str(number),
                "state": "running",
                "host": socket.gethostname(),
            }
            run = self._client.create_run(self.experiment_id, began, tags, run_name=f"trial {number:03d}")
            self._children[number] = run.info.run_id
        return self._children[number]

    def _log(self, trial: FrozenTrial) -> None:
        began, ended = _milliseconds(trial.datetime_start), _milliseconds(trial.datetime_complete)
        run_id = self._create_child(trial.number, began)
        metrics = [Metric(name, value, ended, 0) for name, value in trial_metrics(trial).items()]
        params = [Param(name, str(value)) for name, value in trial.user_attrs.get("parameters", {}).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params, tags=[RunTag("state", outcome(trial))])
        self._client.set_terminated(run_id, STATUS[trial.state], ended)


def trial_metrics(trial: FrozenTrial) -> dict[str, float]:
    """A trial's few figures; an early-stopped one's discrepancy is an estimate and has a name of its own."""
    metrics: dict[str, float] = {}
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        metrics["discrepancy_estimated" if stopped_early(trial) else "discrepancy"] = trial.value
    if trial.duration is not None:
        metrics["seconds"] = trial.duration.total_seconds()
    names = ("samples", "retention", "kv_share", "flops_share")
    return metrics | {name: float(trial.user_attrs[name]) for name in names if name in trial.user_attrs}


def _milliseconds(at: datetime | None) -> int:
    return _now() if at is None else int(at.timestamp() * 1000)


def _now() -> int:
    return int(time.time() * 1000)


def log_to_study(uri: str, study: optuna.Study, paths: list[Path], folder: str | None = None) -> None:
    """Keep files with a study's run, if it has one.

    Raises:
        FlowpruneError: the tracking store does not answer.
    """
    run_id = study.user_attrs.get("mlflow_run")
    client = connect(uri)
    if run_id is None:
        return
    try:
        for path in paths:
            client.log_artifact(run_id, str(path), folder)
    except LOST as error:
        raise FlowpruneError(
            f"MLflow at {masked(uri)} did not take {paths[0]} ({masked(str(error))}): check tracking.uri."
        ) from error


def trials_page(uri: str, study: optuna.Study) -> str | None:
    """The UI's page that lists a study's trials in one flat table, least discrepancy first; None if it has no run."""
    run_id = study.user_attrs.get("mlflow_run")
    if run_id is None:
        return None
    try:
        experiment = connect(uri).get_run(run_id).info.experiment_id
    except MlflowException:
        return None
    wanted = quote(f"tags.kind='trial' and tags.study='{study.study_name}'")
    order = f"orderByKey={quote('metrics.`discrepancy`')}&orderByAsc=true"
    base = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment}/runs?searchFilter={wanted}&{order}"
