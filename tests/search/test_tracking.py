"""MLflow agrees with the study one to one, whatever happened to the server or to the worker."""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState
from requests.exceptions import ConnectionError as RequestsConnectionError
from sqlalchemy.exc import OperationalError
from stand_ins import StandIn, make_runs, make_study, make_tracker, reap, work

import search.tracking.tracker
from multimodal import FlowpruneError, PruningConfig
from search.study import best_trial, stopped_early
from search.tracking import StudyRuns, Tracker, check_store, keep_files

METRICS = {"samples", "seconds", "retention", "kv_share", "flops_share"}
SHARED = {"model": "stand-in", "method": "vflowopt", "budget_measure": "retention"}
STATE = {TrialState.COMPLETE: "complete", TrialState.FAIL: "fail"}


@pytest.fixture(autouse=True)
def quiet_retries():
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def runs_of(folder: Path, kind: str, study: str = "s") -> list:
    return find_runs(client_of(folder), kind, study)


def find_runs(client: MlflowClient, kind: str, study: str) -> list:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.kind = '{kind}' and tags.study = '{study}'"))


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def milliseconds(at) -> int:
    return int(at.timestamp() * 1000)


def check_agreement(folder: Path, study: optuna.Study, parent_status: str = "FINISHED") -> None:
    """The runs of a local store say what the study says."""
    check_runs(client_of(folder), study, parent_status)


def check_runs(client: MlflowClient, study: optuna.Study, parent_status: str = "FINISHED") -> None:
    """One run for the study, and for every trial that ended one run that says the same."""
    parent, children = (find_runs(client, kind, study.study_name) for kind in ("study", "trial"))
    [parent] = parent
    assert parent.info.status == parent_status and parent.info.run_id == study.user_attrs["mlflow_run"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} <= {parent.info.run_id}
    assert {child.info.experiment_id for child in children} <= {parent.info.experiment_id}
    trials = [trial for trial in study.get_trials() if trial.state.is_finished()]
    assert Counter(child.data.tags["trial"] for child in children) == {str(trial.number): 1 for trial in trials}
    by_trial = {int(child.data.tags["trial"]): child for child in children}
    for trial in trials:
        child, facts = by_trial[trial.number], trial.user_attrs
        shown = SHARED | trial.params | facts.get("parameters", {})  # trial.params: what optuna-dashboard shows
        assert child.data.params == {name: str(value) for name, value in shown.items()}
        assert child.info.status == ("FAILED" if trial.state == TrialState.FAIL else "FINISHED")
        assert child.data.tags["state"] == ("stopped early" if stopped_early(trial) else STATE[trial.state])
        assert child.info.end_time == milliseconds(trial.datetime_complete)
        assert abs(child.info.start_time - milliseconds(trial.datetime_start)) < 60_000  # a busy machine is slow
        metrics = child.data.metrics
        if trial.state == TrialState.FAIL:
            assert set(metrics) <= METRICS
        else:
            assert set(metrics) == METRICS | {"discrepancy"}
            assert metrics["discrepancy"] == pytest.approx(trial.value)
            assert child.data.tags["figure"] == ("estimated" if stopped_early(trial) else "measured")
        for name in ("samples", "retention", "kv_share", "flops_share"):
            assert metrics.get(name) == facts.get(name)


def mixed_search(study: optuna.Study, tracker: Tracker) -> None:
    """Complete, stopped early, complete, failed."""
    for weight in (0.3, -1.0, 0.3001, 0.5):
        study.enqueue_trial({"entropy_weight": weight})

    def fail(number: int) -> None:
        if number >= 3:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        work(study, 9, StandIn(samples=16, during=fail), tracker)
    assert {(trial.state, stopped_early(trial)) for trial in study.get_trials()} == {
        (TrialState.COMPLETE, False),
        (TrialState.COMPLETE, True),
        (TrialState.FAIL, False),
        (TrialState.WAITING, False),
    }


def test_runs_agree_with_trials_and_sync_changes_nothing(folder):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    mixed_search(study, tracker)
    tracker.close()
    assert tracker.lost is None
    check_agreement(folder, study)
    [parent] = runs_of(folder, "study")
    named = {"budget": "0.25", "calibration_digest": "abc", "model.layers": "6"}
    assert parent.data.params.items() >= (SHARED | named).items()
    assert parent.data.metrics["discrepancy"] == pytest.approx(best_trial(study).value)
    for child in runs_of(folder, "trial"):
        if child.info.status == "FINISHED":
            config = PruningConfig(**json.loads(child.data.tags["config"]))
            assert str(config.method.entropy_weight) == child.data.params["entropy_weight"]
            assert config.provenance.trial == int(child.data.tags["trial"])

    before = sorted(child.info.run_id for child in runs_of(folder, "trial"))
    for _ in range(2):
        assert make_runs(folder, make_study(folder)).sync("FINISHED") == 0
    assert make_runs(folder, make_study(folder)).sync("RUNNING") == 1
    check_agreement(folder, study, "RUNNING")
    make_tracker(folder, make_study(folder)).close("FAILED")
    check_agreement(folder, study, "FAILED")
    assert sorted(child.info.run_id for child in runs_of(folder, "trial")) == before


class Flaky:
    """A client whose server is away while ``down``: calls are lost on the way there, or their answers on the way back.

    Args:
        client: the real one.
        error: what the caller sees.
        answers: whether it is the answers that get lost.
        methods: names of the calls that fail; None: all.
    """

    def __init__(self, client: MlflowClient, error: Exception, answers: bool = False, methods: tuple | None = None):
        self.client, self.error, self.answers, self.methods = client, error, answers, methods
        self.down = False
        self.lost_calls = 0

    def __getattr__(self, name: str):
        real = getattr(self.client, name)
        if not callable(real):
            return real

        def call(*args, **kwargs):
            if not self.down or (self.methods and name not in self.methods):
                return real(*args, **kwargs)
            self.lost_calls += 1
            if self.answers:
                real(*args, **kwargs)
            raise self.error

        return call


ERRORS = {
    "mlflow": MlflowException("API request failed with exception: Max retries exceeded"),
    "connection": RequestsConnectionError("connection refused"),
    "os": OSError(101, "Network is unreachable"),
    "database": OperationalError("INSERT", {}, Exception("database is locked")),
}


def flaky_runs(flaky: Flaky, study: optuna.Study, folder: Path) -> StudyRuns:
    return StudyRuns(flaky, study, "flowprune-tests", folder / "artifacts")


@pytest.mark.parametrize(("error", "pause"), [*zip(ERRORS.values(), [0.01] * 4, strict=True), (ERRORS["os"], 60)])
def test_a_server_lost_for_a_while_loses_nothing(error, pause, folder, monkeypatch):
    monkeypatch.setattr(search.tracking.tracker, "FIRST_PAUSE", pause)
    study = make_study(folder)
    flaky = Flaky(client_of(folder), error)
    tracker = Tracker(flaky_runs(flaky, study, folder))

    def during(number: int) -> None:
        time.sleep(0.15)  # let the tracker's thread come to this point
        flaky.down = number in (1, 2)

    work(study, 4, StandIn(during=during), tracker)
    tracker.close()
    assert flaky.lost_calls and tracker.lost is None
    assert len(study.get_trials()) == 4
    check_agreement(folder, study)


@pytest.mark.parametrize(
    ("methods", "answers"),
    [(("create_run",), True), (("log_batch",), True), (("set_terminated",), False), (None, True), (None, False)],
    ids=str,
)
def test_a_server_lost_to_the_end_is_caught_up_by_the_next_run(methods, answers, folder, monkeypatch):
    monkeypatch.setattr(search.tracking.tracker, "FIRST_PAUSE", 0.01)
    study = make_study(folder)
    flaky = Flaky(client_of(folder), ERRORS["mlflow"], answers, methods)
    tracker = Tracker(flaky_runs(flaky, study, folder))
    flaky.down = True
    work(study, 3, StandIn(), tracker)
    tracker.close()
    assert flaky.lost_calls and (tracker.lost is None or "Max retries exceeded" in tracker.lost)
    assert len(study.get_trials()) == 3

    study = make_study(folder)
    again = make_tracker(folder, study)
    work(study, 4, tracker=again)
    again.close()
    check_agreement(folder, study)


def test_a_store_that_fails_once_at_the_end_is_asked_again(folder, monkeypatch):
    monkeypatch.setattr(search.tracking.tracker, "FIRST_PAUSE", 0.01)
    study = make_study(folder)
    client = client_of(folder)
    flaky = Flaky(client, MlflowException("The run must be in the 'active' state."), methods=("search_runs",))
    tracker = Tracker(flaky_runs(flaky, study, folder))
    work(study, 3, tracker=tracker)
    flaky.down = True

    def sleep(seconds: float) -> None:
        flaky.down = False

    monkeypatch.setattr(search.tracking.tracker.time, "sleep", sleep)
    tracker.close()
    assert flaky.lost_calls and tracker.lost is None
    check_agreement(folder, study)


def test_a_lost_answer_makes_no_second_run(folder, monkeypatch):
    monkeypatch.setattr(search.tracking.tracker, "FIRST_PAUSE", 0.01)
    study = make_study(folder)
    flaky = Flaky(client_of(folder), ERRORS["connection"], answers=True, methods=("create_run",))
    tracker = Tracker(flaky_runs(flaky, study, folder))

    def during(number: int) -> None:
        time.sleep(0.15)
        flaky.down = False

    flaky.down = True
    work(study, 3, StandIn(during=during), tracker)
    tracker.close()
    assert flaky.lost_calls
    check_agreement(folder, study)


@pytest.mark.parametrize(
    ("method", "answers"),
    [("create_run", True), ("create_run", False), ("get_run", False), ("create_experiment", True)],
)
def test_a_server_lost_at_the_start_stops_nothing_and_makes_no_second_parent(method, answers, folder):
    study = make_study(folder)
    if method == "get_run":
        make_tracker(folder, study).close()
    flaky = Flaky(client_of(folder), ERRORS["mlflow"], answers, methods=(method,))
    flaky.down = True
    lost = Tracker(StudyRuns(flaky, study, f"experiment {method}", folder / "artifacts"))
    work(study, 2, tracker=lost)
    lost.close()
    assert flaky.lost_calls and (lost.lost is None or "Max retries" in lost.lost)
    StudyRuns(client_of(folder), make_study(folder), f"experiment {method}", folder / "artifacts").sync("FINISHED")
    check_agreement(folder, study)


def test_a_worker_beside_others_reads_their_runs_only_if_it_ended_the_last_trial(folder):
    study = make_study(folder)
    make_runs(folder, study).sync("RUNNING")
    unread = Flaky(client_of(folder), ERRORS["mlflow"], methods=("search_runs",))
    unread.down = True
    first, last = (
        Tracker(runs, beside_others=True) for runs in (flaky_runs(unread, study, folder), make_runs(folder, study))
    )
    work(study, 3, tracker=first)
    work(make_study(folder), 5, tracker=last)
    first.close()
    assert unread.lost_calls == 0 and first.lost is None
    last.close()
    check_agreement(folder, study)


@pytest.mark.parametrize("how", ["other store", "deleted"])
def test_a_study_whose_run_is_gone_is_logged_anew(how, folder, empty_store):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    mixed_search(study, tracker)
    tracker.close()
    if how == "deleted":
        for run in [*runs_of(folder, "study"), *runs_of(folder, "trial")]:
            client_of(folder).delete_run(run.info.run_id)
    else:
        shutil.copy(empty_store, folder / "mlflow.db")
        (folder / "mlflow.db-wal").unlink(missing_ok=True)
    study = make_study(folder)
    make_tracker(folder, study).close()
    check_agreement(folder, study)


def test_another_experiment_name_keeps_the_study_together(folder):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    work(study, 2, tracker=tracker)
    tracker.close()
    again = Tracker(StudyRuns(client_of(folder), study, "another name", folder / "artifacts"))
    work(study, 3, tracker=again)
    again.close()
    check_agreement(folder, study)


def test_no_run_stays_running_after_a_killed_worker_and_the_next_run(killed):
    before = runs_of(killed, "trial")
    assert [child.info.status for child in before if child.data.tags["trial"] == "2"] == ["RUNNING"]
    study = make_study(killed, early_stopping=False)
    assert reap(study, 4) == [2]
    tracker = make_tracker(killed, study)
    wait_for(lambda: "RUNNING" not in {child.info.status for child in runs_of(killed, "trial")})
    work(study, 4, tracker=tracker)
    tracker.close()
    check_agreement(killed, study)


def test_an_unreachable_server_is_said_quickly():
    began = time.monotonic()
    with pytest.raises(FlowpruneError, match=r"No MLflow tracking store answers at http://127\.0\.0\.1:9 .*: start it"):
        check_store("http://127.0.0.1:9", "flowprune-tests")
    assert time.monotonic() - began < 8


def test_files_are_kept_with_a_studys_run(folder):
    study = make_study(folder)
    (folder / "pruning.json").write_text("{}")
    uri = f"sqlite:///{folder}/mlflow.db"
    keep_files(uri, study, [folder / "pruning.json"])  # no run yet: nothing to do
    make_tracker(folder, study).close()
    keep_files(uri, study, [folder / "pruning.json"], "export")
    [parent] = runs_of(folder, "study")
    found = [file.path for file in client_of(folder).list_artifacts(parent.info.run_id, "export")]
    assert found == ["export/pruning.json"]


def test_a_full_artifact_disk_is_one_sentence_and_loses_nothing(folder, monkeypatch):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    work(study, 2, tracker=tracker)
    tracker.close()
    (folder / "search.png").write_bytes(b"0" * 100)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(
        FlowpruneError, match=r"did not take search\.png \(.*No space left on device\): the files are in"
    ):
        keep_files(f"sqlite:///{folder}/mlflow.db", study, [folder / "search.png"])
    check_agreement(folder, study)


class Pausing:
    """A client whose calls of one name wait for all workers' to come, so that none sees what the others make.

    Args:
        client: the real one.
        method: that name.
        barrier: where they wait.
    """

    def __init__(self, client: MlflowClient, method: str, barrier: threading.Barrier):
        self.client, self.method, self.barrier = client, method, barrier

    def __getattr__(self, name: str):
        real = getattr(self.client, name)
        if not callable(real):
            return real

        def call(*args, **kwargs):
            if name == self.method and not self.barrier.broken:
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.barrier.wait(0.5)
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("method", ["create_experiment", "create_run"])
def test_workers_that_start_at_the_same_moment_make_one_run_each(method, folder):
    """Three workers, none of which sees the others' runs before it has made its own."""
    work(make_study(folder), 2)
    barrier = threading.Barrier(3)
    clients = [Pausing(client_of(folder), method, barrier) for _ in range(3)]
    runs = [StudyRuns(client, make_study(folder), f"experiment {method}", folder / "artifacts") for client in clients]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda of_one: Tracker(of_one).close(), runs))
    check_agreement(folder, make_study(folder))
    assert [of_one.sync("FINISHED") for of_one in runs] == [0, 0, 0]


def test_runs_that_say_something_else_are_made_anew(folder):
    study = make_study(folder)
    tracker = make_tracker(folder, study)
    mixed_search(study, tracker)
    tracker.close()
    client, children = client_of(folder), runs_of(folder, "trial")
    client.log_metric(children[0].info.run_id, "discrepancy", 7.0)
    client.set_terminated(children[1].info.run_id, "KILLED")
    client.delete_run(children[2].info.run_id)
    again = client.create_run(children[3].info.experiment_id, tags=children[3].data.tags)
    tags = {name: value for name, value in children[3].data.tags.items() if not name.startswith("mlflow.")}
    client.create_run(again.info.experiment_id, tags=tags | {"trial": "99", "mlflow.parentRunId": "gone"})
    assert make_runs(folder, study).sync("FINISHED") >= 4
    check_agreement(folder, study)


def test_studies_of_one_name_in_two_storages_keep_apart(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for where, trials in ((folder, 2), (elsewhere, 3)):
        study = make_study(where)
        work(study, trials)
        make_runs(folder, study).sync("FINISHED")
    parents = runs_of(folder, "study")
    assert len(parents) == 2 and len(runs_of(folder, "trial")) == 5


def test_a_deleted_experiment_is_said(folder):
    client = client_of(folder)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(FlowpruneError, match=r"experiment 'gone' was deleted: restore it, or set tracking\.experiment"):
        check_store(f"sqlite:///{folder}/mlflow.db", "gone")
    study = make_study(folder)
    tracker = Tracker(StudyRuns(client, study, "gone", folder / "artifacts"))
    work(study, 2, tracker=tracker)
    tracker.close()
    assert "was deleted" in tracker.lost and len(study.get_trials()) == 2
