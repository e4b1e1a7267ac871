"""The MLflow runs of one study, each made once, whichever workers make them.

MLflow knows no lock, so nothing is locked. Runs are recognised by tags: ``study_id``, which is kept with the study, and
``trial`` or ``budget``. A run that may exist is looked for before it is made; where two workers made one at the same
moment, or the answer to its creation was lost, everyone keeps the one of least id and deletes the others.
"""

import time
from pathlib import Path

import optuna
from mlflow.entities import Experiment, LifecycleStage, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from search.study import budgets_of, is_front, study_ids
from search.tracking.facts import RUN, agrees, ended, entities, milliseconds, shared_params, status
from search.tracking.origin import origin_tags
from search.tracking.pages import budgets_view, note, studies_view, trials_view
from search.tracking.store import KIND, make_experiment
from search.tracking.summary import (
    best_curve,
    budget_of,
    curve_name,
    latest_done,
    progress_metrics,
    summary_of,
    write_summary,
)

LOOKS = 5  # of a sync, at most, until nothing is left to do
CURVE_PAUSE = 2.0  # seconds at least between two looks at all trials; a sync logs what was left out
PARENT = "mlflow.parentRunId"
ENDED = ("FINISHED", "FAILED", "KILLED")


class StudyRuns:
    """A study's parent run, its trials' child runs, and with several budgets a run a budget in between.

    Args:
        client: see :func:`search.tracking.open_store`.
        study: the study.
        experiment: name of the MLflow experiment; a study that has a run stays in that run's.
        artifacts: folder of a local store's artifacts; None with a server, which has its own.
    """

    def __init__(self, client: MlflowClient, study: optuna.Study, experiment: str, artifacts: Path | None) -> None:
        self._client = client
        self._study = study
        self._experiment = experiment
        self._artifacts = artifacts
        self._children: dict[int, str] = {}
        self._parent: Run | None = None
        self._budgets: dict[float, str] = {}
        self._next_look = 0.0

    def sync(self, wanted: str | None) -> int:
        """Make MLflow agree with the study: every trial that ended has one run that says the same.

        Args:
            wanted: MLflow's status of the study's run; as long as any trial is running, so is the study. None: as it
                ended, if it did. KILLED is only said of what has not ended.

        Returns:
            How many runs were made, mended or deleted.
        """
        changes = 0
        for _ in range(LOOKS):
            made = self._sync_trials()
            changes += made
            if not made:  # else another worker may have made the same at the same moment: look again
                break
        return changes + self._sync_summaries() + self._sync_status(wanted)

    def _sync_trials(self) -> int:
        _, children, changes = self._settled()
        trials = self._study.get_trials(deepcopy=False)
        for number in children.keys() - {trial.number for trial in trials}:
            self._client.delete_run(children.pop(number).info.run_id)
            changes += 1
        self._children = {number: run.info.run_id for number, run in children.items()}
        for trial in trials:
            run = children.get(trial.number)
            if not trial.state.is_finished():
                continue
            if run is not None and agrees(self._study, run, trial):
                if run.data.tags[PARENT] != (above := self._above(trial)):
                    self._client.set_tag(run.info.run_id, PARENT, above)
                    changes += 1
                continue
            if run is not None and run.info.status != "RUNNING":  # what a run says once cannot be changed
                self._client.delete_run(self._children.pop(trial.number))
            self._log(trial)
            changes += 1
        return changes

    def start(self, number: int, began: int) -> str:
        """Make a running trial's run; returns its id."""
        if number not in self._children:
            parent = self._known_parent() or self._settled()[0]
            tags = {PARENT: parent.info.run_id, "kind": "trial", "trial": str(number), "state": "running"}
            self._children[number] = self._create(parent.info.experiment_id, tags, f"trial {number:03d}", began)
        return self._children[number]

    def log(self, trial: FrozenTrial) -> None:
        """Log a finished trial, and now and then how the study stands."""
        self._log(trial)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + CURVE_PAUSE
            self._log_progress(trial)

    def latest(self) -> int | None:
        """The trial that was the last to be done; None if none is."""
        return latest_done(self._study)

    def _log(self, trial: FrozenTrial) -> None:
        run_id = self.start(trial.number, milliseconds(trial.datetime_start))
        if is_front(self._study) and self._known_parent() is not None:
            self._client.set_tag(run_id, PARENT, self._above(trial))
        self._client.log_batch(run_id, **entities(self._study, trial))
        self._client.set_terminated(run_id, status(trial), ended(trial))

    def _log_progress(self, trial: FrozenTrial) -> None:
        parent, budget, trials = self._known_parent(), budget_of(trial), self._study.get_trials(deepcopy=False)
        if parent is None:
            return
        metrics = [Metric(name, value, ended(trial), 0) for name, value in progress_metrics(trials).items()]
        self._client.log_batch(parent.info.run_id, metrics=metrics)
        run_id = self._above(trial)
        if run_id != parent.info.run_id:
            trials = [each for each in trials if budget_of(each) == budget]
        if run_id != parent.info.run_id or not is_front(self._study):
            curve = [point for point in best_curve(self._study, trials) if point.timestamp == ended(trial)]
            self._client.log_batch(run_id, metrics=curve)

    def _above(self, trial: FrozenTrial) -> str:
        """The run that a trial's run is below."""
        assert self._parent is not None
        budget = budget_of(trial)
        return self._parent.info.run_id if budget is None else self._budgets.get(budget, self._parent.info.run_id)

    def _known_parent(self) -> Run | None:
        """The study's run, without a look at its trials'."""
        if self._parent is None and (run := self._known_run()) and run.info.lifecycle_stage == LifecycleStage.ACTIVE:
            self._parent = run
            known = self._study.user_attrs
            named = {budget: known.get(f"{RUN}:{budget:g}") for budget in budgets_of(self._study)}
            self._budgets = {budget: run_id for budget, run_id in named.items() if run_id is not None}
        return self._parent

    def _settled(self) -> tuple[Run, dict[int, Run], int]:
        """The study's run, its trials' runs, and how many runs had to be made, moved or deleted for there to be one
        each."""
        experiment, changes = self._opened_experiment().experiment_id, 0
        found = self._found(experiment)
        if not any(run.data.tags["kind"] == "study" for run in found):
            self._create(experiment, {"kind": "study"}, self._study.study_name, self._began())
            found, changes = self._found(experiment), 1  # others may have made one, too
        parent, *surplus = [run for run in found if run.data.tags["kind"] == "study"]
        known: dict[str, dict[str, Run]] = {"trial": {}, "budget": {}}
        for run in found:
            kind = run.data.tags["kind"]
            if kind in known and known[kind].setdefault(run.data.tags[kind], run) is not run:
                surplus.append(run)
        for run in surplus:
            self._client.delete_run(run.info.run_id)
        changes += len(surplus) + self._settle_budgets(parent, known["budget"])
        children = {int(number): run for number, run in known["trial"].items()}
        own = {parent.info.run_id, *self._budgets.values()}
        for run in children.values():
            if run.data.tags[PARENT] not in own:
                self._client.set_tag(run.info.run_id, PARENT, parent.info.run_id)
                run.data.tags[PARENT] = parent.info.run_id
                changes += 1
        if self._study.user_attrs.get(RUN) != parent.info.run_id:
            self._study.set_user_attr(RUN, parent.info.run_id)
        self._parent = parent
        return parent, children, changes

    def _settle_budgets(self, parent: Run, known: dict[str, Run]) -> int:
        """Make the run of each of several budgets; returns how many were made or moved."""
        changes = 0
        for budget in budgets_of(self._study) if is_front(self._study) else []:
            run = known.get(f"{budget:g}")
            if run is None:
                tags = {PARENT: parent.info.run_id, "kind": "budget", "budget": f"{budget:g}"}
                name = f"{shared_params(self._study)['budget_measure']} {budget:g}"
                run_id = self._create(parent.info.experiment_id, tags, name, self._began())
                changes += 1
            else:
                run_id = run.info.run_id
                if run.data.tags[PARENT] != parent.info.run_id:
                    self._client.set_tag(run_id, PARENT, parent.info.run_id)
                    changes += 1
            self._budgets[budget] = run_id
            if self._study.user_attrs.get(f"{RUN}:{budget:g}") != run_id:
                self._study.set_user_attr(f"{RUN}:{budget:g}", run_id)
        return changes

    def _found(self, experiment: str) -> list[Run]:
        """All of the study's runs, least id first."""
        found: list[Run] = []
        for identity in study_ids(self._study):
            token = None
            while True:
                page = self._client.search_runs([experiment], f"tags.study_id = '{identity}'", page_token=token)
                found += page
                if not (token := page.token):
                    break
        return sorted(found, key=lambda run: run.info.run_id)

    def _began(self) -> int | None:
        starts = [milliseconds(trial.datetime_start) for trial in self._study.get_trials(deepcopy=False)]
        return min(filter(None, starts), default=None)

    def _create(self, experiment: str, tags: dict[str, str], name: str, began: int | None) -> str:
        tags |= {"study": self._study.study_name, "study_id": study_ids(self._study)[0]} | origin_tags()
        tags["model"] = self._study.user_attrs["settings"]["model"]["id"]
        return self._client.create_run(experiment, began, tags, run_name=name).info.run_id

    def _sync_summaries(self) -> int:
        """Make the study's run and its budgets' say what Optuna knows; returns how many things were changed."""
        parent, study, client = self._parent or self._settled()[0], self._study, self._client
        run_id, experiment, changes = parent.info.run_id, self._opened_experiment(), 0
        words = note(study, experiment.experiment_id, run_id, client.tracking_uri, self._budgets)
        whole = summary_of(study)
        whole.tags["mlflow.note.content"] = words
        changes += write_summary(client, parent, whole, curve_name(study))
        for budget, budget_run in self._budgets.items():
            summary = summary_of(study, budget)
            changes += write_summary(client, client.get_run(budget_run), summary, curve_name(study))
        below = self._budgets.values() or [run_id]
        views = dict([studies_view(), *(trials_view(study, each) for each in below)])
        views |= KIND | (dict([budgets_view(run_id)]) if self._budgets else {})
        for name, value in views.items():
            if experiment.tags.get(name) != value:
                client.set_experiment_tag(experiment.experiment_id, name, value)
        return changes

    def _sync_status(self, wanted: str | None) -> int:
        """Say how the study stands. Others may say it at the same moment, of trials that have ended since, so that
        whoever changed something looks at the trials once more."""
        changes = 0
        for run_id in [(self._parent or self._settled()[0]).info.run_id, *self._budgets.values()]:
            for _ in range(LOOKS):
                trials, known = self._study.get_trials(deepcopy=False), self._client.get_run(run_id).info.status
                status = wanted or (known if known in ENDED else "FINISHED")
                if status == "KILLED" and known in ENDED:
                    status = known
                if any(trial.state == TrialState.RUNNING for trial in trials):
                    status = "RUNNING"
                if status == known:
                    break
                if status == "RUNNING":
                    self._client.update_run(run_id, status)
                else:
                    self._client.set_terminated(run_id, status, max(map(ended, trials), default=0) or None)
                changes += 1
        return changes

    def _opened_experiment(self) -> Experiment:
        """The experiment of the study's run, or else that of the name, which is made if there is none.

        Raises:
            FlowpruneError: it was deleted.
        """
        return self._known_experiment() or make_experiment(self._client, self._experiment, self._artifacts)

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
