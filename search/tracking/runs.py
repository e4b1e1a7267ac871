"""The MLflow runs of one study, each made once, whichever workers make them.

MLflow knows no lock, so nothing is locked. Runs are recognised by tags: ``study_id``, which is kept with the study, and
``trial``. A run that may exist is looked for before it is made; where two workers made one at the same moment, or the
answer to its creation was lost, everyone keeps the one of least id and deletes the others.
"""

import socket
import uuid
from pathlib import Path
from typing import Any

import optuna
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from search.tracking.facts import RUN, agrees, ended, entities, flat, milliseconds, status, study_metrics
from search.tracking.pages import note, trials_view
from search.tracking.store import find_experiment

IDENTITY = "mlflow_study_id:"  # begins the study's attributes, one a worker that was first, that recognise its runs
LOOKS = 5  # of a sync, at most, until nothing is left to do
KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens on the table of runs


class StudyRuns:
    """A study's parent run and its trials' child runs.

    Args:
        client: see :func:`search.tracking.open_store`.
        study: the study.
        experiment: name of the MLflow experiment, one a model; a study that has a run stays in that run's.
        artifacts: folder of a local store's artifacts; None with a server, which has its own.
    """

    def __init__(self, client: MlflowClient, study: optuna.Study, experiment: str, artifacts: Path | None) -> None:
        self._client = client
        self._study = study
        self._experiment = experiment
        self._artifacts = artifacts
        self._children: dict[int, str] = {}
        self._parent: Run | None = None

    def sync(self, wanted: str) -> int:
        """Make MLflow agree with the study: every trial that ended has one run that says the same.

        Args:
            wanted: MLflow's status of the study's run; as long as any trial is running, so is the study.

        Returns:
            How many runs were made, mended or deleted.
        """
        changes = 0
        for _ in range(LOOKS):
            made = self._sync_trials()
            changes += made
            if not made:  # else another worker may have made the same at the same moment: look again
                break
        return changes + self._sync_parent(wanted)

    def _sync_trials(self) -> int:
        _, children, changes = self._settled()
        trials = self._study.get_trials(deepcopy=False)
        for number in children.keys() - {trial.number for trial in trials}:
            self._client.delete_run(children.pop(number).info.run_id)
            changes += 1
        self._children = {number: run.info.run_id for number, run in children.items()}
        for trial in trials:
            run = children.get(trial.number)
            if not trial.state.is_finished() or (run is not None and agrees(run, trial)):
                continue
            if run is not None and run.info.status != "RUNNING":  # what a run says once cannot be changed
                self._client.delete_run(self._children.pop(trial.number))
            self.log(trial)
            changes += 1
        return changes

    def start(self, number: int, began: int) -> str:
        """Make a running trial's run; returns its id."""
        if number not in self._children:
            parent = self._known_parent() or self._settled()[0]
            tags = {"mlflow.parentRunId": parent.info.run_id, "kind": "trial", "trial": str(number), "state": "running"}
            self._children[number] = self._create(parent.info.experiment_id, tags, f"trial {number:03d}", began)
        return self._children[number]

    def log(self, trial: FrozenTrial) -> None:
        """Log a finished trial."""
        run_id = self.start(trial.number, milliseconds(trial.datetime_start))
        self._client.log_batch(run_id, **entities(self._study, trial))
        self._client.set_terminated(run_id, status(trial), ended(trial))

    def latest(self) -> int | None:
        """The trial that was the last to be done; None if none is."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(done, key=ended).number if done else None

    def _known_parent(self) -> Run | None:
        """The study's run, without a look at its trials'."""
        if self._parent is None and (run := self._known_run()) and run.info.lifecycle_stage == LifecycleStage.ACTIVE:
            self._parent = run
        return self._parent

    def _settled(self) -> tuple[Run, dict[int, Run], int]:
        """The study's run, its trials' runs, and how many runs had to be made, moved or deleted for there to be one
        each."""
        experiment, changes = self._opened_experiment().experiment_id, 0
        found = self._found(experiment)
        if not any(run.data.tags["kind"] == "study" for run in found):
            starts = [milliseconds(trial.datetime_start) for trial in self._study.get_trials(deepcopy=False)]
            self._create(experiment, {"kind": "study"}, self._study.study_name, min(filter(None, starts), default=None))
            found, changes = self._found(experiment), 1  # others may have made one, too
        parent, *surplus = [run for run in found if run.data.tags["kind"] == "study"]
        children: dict[int, Run] = {}
        for run in found:
            if run.data.tags["kind"] == "trial" and children.setdefault(int(run.data.tags["trial"]), run) is not run:
                surplus.append(run)
        for run in surplus:
            self._client.delete_run(run.info.run_id)
        for run in children.values():
            if run.data.tags["mlflow.parentRunId"] != parent.info.run_id:
                self._client.set_tag(run.info.run_id, "mlflow.parentRunId", parent.info.run_id)
                changes += 1
        if self._study.user_attrs.get(RUN) != parent.info.run_id:
            self._study.set_user_attr(RUN, parent.info.run_id)
        self._parent = parent
        return parent, children, changes + len(surplus)

    def _found(self, experiment: str) -> list[Run]:
        """All of the study's runs, least id first."""
        found: list[Run] = []
        for identity in self._identities():
            token = None
            while True:
                page = self._client.search_runs([experiment], f"tags.study_id = '{identity}'", page_token=token)
                found += page
                if not (token := page.token):
                    break
        return sorted(found, key=lambda run: run.info.run_id)

    def _identities(self) -> list[str]:
        """What the study's runs are tagged with: one id, or several if workers were the first at the same moment."""
        while True:
            names = [name for name in self._study.user_attrs if name.startswith(IDENTITY)]
            if names:
                return sorted(name.removeprefix(IDENTITY) for name in names)
            self._study.set_user_attr(IDENTITY + uuid.uuid4().hex, True)

    def _create(self, experiment: str, tags: dict[str, str], name: str, began: int | None) -> str:
        tags |= {"study": self._study.study_name, "study_id": self._identities()[0], "host": socket.gethostname()}
        tags["model"] = self._study.user_attrs["settings"]["model"]["id"]
        return self._client.create_run(experiment, began, tags, run_name=name).info.run_id

    def _sync_parent(self, wanted: str) -> int:
        """Make the study's run say what Optuna knows; returns how many things were changed."""
        parent = self._parent or self._settled()[0]
        known, run_id, experiment = parent.data, parent.info.run_id, self._opened_experiment()
        trials = self._study.get_trials(deepcopy=False)
        at = max(map(ended, trials), default=0)
        if any(trial.state == TrialState.RUNNING for trial in trials):
            wanted = "RUNNING"
        params = flat(self._study.user_attrs["settings"])
        tags = {"mlflow.note.content": note(self._study, experiment.experiment_id, run_id)}
        new: dict[str, Any] = {
            "params": [Param(name, value) for name, value in params.items() if name not in known.params],
            "tags": [RunTag(name, value) for name, value in tags.items() if known.tags.get(name) != value],
            "metrics": [
                Metric(name, value, at, 0)
                for name, value in study_metrics(self._study).items()
                if known.metrics.get(name) != value
            ],
        }
        if any(new.values()):
            self._client.log_batch(run_id, **new)
        name, view = trials_view(self._study, run_id)
        if experiment.tags.get(name) != view:
            self._client.set_experiment_tag(experiment.experiment_id, name, view)
        if parent.info.status != wanted:
            if wanted == "RUNNING":
                self._client.update_run(run_id, wanted)
            else:
                self._client.set_terminated(run_id, wanted, at or None)
        return sum(map(len, new.values())) + (parent.info.status != wanted)

    def _opened_experiment(self) -> Experiment:
        """The experiment of the study's run, or else that of the name, which is made if there is none.

        Raises:
            FlowpruneError: it was deleted.
        """
        found = self._known_experiment() or find_experiment(self._client, self._experiment)
        if found is not None:
            return found
        location = None if self._artifacts is None else self._artifacts.absolute().as_uri()
        try:
            self._client.create_experiment(self._experiment, location, KIND)
        except MlflowException as error:  # another worker was first
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return self._opened_experiment()

    def _known_experiment(self) -> Experiment | None:
        run = self._known_run()
        if run is None:
            return None
        found = self._client.get_experiment(run.info.experiment_id)
        return found if found.lifecycle_stage == LifecycleStage.ACTIVE else None

    def _known_run(self) -> Run | None:
        """The study's run as it was left, deleted or not."""
        known = self._study.user_attrs.get(RUN)
        if known is None:
            return None
        try:
            return self._client.get_run(known)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
