"""Many workers on one study: no trial is lost, run twice or counted twice, whoever dies, on every shared storage.

With few trials and deaths, to be quick; docs/cluster.md has the figures and the command for many.
"""

import os
import random
import time

import optuna
import pytest
from crowd import Crowd, runs_of
from engines import wait_until
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from test_tracking import check_runs

TRIALS, KILLS, OUTAGE = (int(os.environ.get(name, few)) for name, few in (("TRIALS", 48), ("KILLS", 3), ("OUTAGE", 3)))


@pytest.fixture(params=["journal", "postgres", "grpc"])
def shared(request, tmp_path) -> tuple[str, dict]:
    """A storage that many workers share: its kind and its settings."""
    if request.param == "journal":
        return "journal", {"path": str(tmp_path / "studies.journal")}
    if request.param == "postgres":
        return "postgres", request.getfixturevalue("postgres").settings
    return "grpc", request.getfixturevalue("proxy")


def test_eight_workers_on_one_study(shared, mlflow_server):
    kind, options, uri = *shared, mlflow_server.uri
    with Crowd(kind, options, target=TRIALS, name=f"eight-{kind}", uri=uri, early_stopping=False) as crowd:
        crowd.start(8)
        crowd.join(300)
        assert {worker.exitcode for worker in crowd.workers} == {0}
        trials = crowd.study.get_trials()
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert sorted(trial.user_attrs["slot"] for trial in trials) == list(range(TRIALS))
    assert len({tuple(trial.params.items()) for trial in trials}) == TRIALS  # each worker has a seed of its own
    assert len({trial.user_attrs["worker"] for trial in trials}) > 4  # the last may start when all is done
    runs_of(crowd.study, uri).sync("FINISHED")  # as the command that launched them does
    check_runs(MlflowClient(uri), crowd.study)
    assert runs_of(crowd.study, uri).sync("FINISHED") == 0


def test_workers_that_are_killed_lose_no_trial(shared):
    kind, options = shared
    dice = random.Random(kind)
    with Crowd(kind, options, target=12 * KILLS, seconds=0.3, name=f"killed-{kind}", early_stopping=False) as crowd:
        crowd.start(4)
        for _ in range(KILLS):
            time.sleep(dice.uniform(0.1, 0.6))
            dice.choice([worker for worker in crowd.workers if worker.exitcode is None]).kill()
            crowd.start(1)
        crowd.join(120)
        trials = crowd.study.get_trials()
    check_slots(trials, 12 * KILLS)


def test_another_host_whose_clock_is_a_minute_fast_loses_no_trial(postgres):
    """Its worker is killed, which only silence tells from here; those at work are taken for what they are."""
    hosts = {"name": "hosts", "beat": 0.5, "early_stopping": False}
    with Crowd("postgres", postgres.settings, target=24, seconds=1.0, **hosts) as crowd:
        crowd.start(2)
        crowd.start(2, "elsewhere")
        wait_until(lambda: len(running(crowd.study, "elsewhere")) == 2, 60, "two trials elsewhere")
        [lost] = [t for t in running(crowd.study, "elsewhere") if worker_of(t) == f"elsewhere:{crowd.workers[3].pid}"]
        crowd.workers[3].kill()
        crowd.join(120)
        trials = crowd.study.get_trials()
    check_slots(trials, 24)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [(trial.number, trial.user_attrs["error"]) for trial in failed] == [(lost.number, "its worker died")]
    own, others = ([t for t in trials if worker_of(t).startswith("elsewhere:") == there] for there in (False, True))
    ahead = min(t.datetime_start for t in others) - min(t.datetime_start for t in own)
    assert ahead.total_seconds() > 30 and len(others) > 2


def running(study: optuna.Study, host: str) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in trials if worker_of(trial).startswith(f"{host}:")]


def worker_of(trial: FrozenTrial) -> str:
    return trial.user_attrs.get("worker", "")


def check_slots(trials: list[FrozenTrial], target: int) -> None:
    """Each slot has exactly one complete trial, and failed ones were tried again with the same parameters."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    failed = {trial.number: trial for trial in trials if trial.state == TrialState.FAIL}
    assert sorted(trial.user_attrs["slot"] for trial in complete) == list(range(target))
    assert len(complete) + len(failed) == len(trials)
    retried = {trial.user_attrs["retry_of"]: trial for trial in trials if "retry_of" in trial.user_attrs}
    for number, trial in failed.items():
        if trial.params and "retry_of" not in trial.user_attrs and "error" in trial.user_attrs:
            assert trial.params == retried[number].system_attrs["fixed_params"]
            assert retried[number].user_attrs["slot"] == trial.user_attrs["slot"]


def test_a_database_that_is_killed_and_comes_back_loses_no_trial(postgres):
    with Crowd("postgres", postgres.settings, target=24, seconds=0.1, name="outage", early_stopping=False) as crowd:
        crowd.start(4)
        while sum(trial.state == TrialState.COMPLETE for trial in crowd.study.get_trials(deepcopy=False)) < 8:
            time.sleep(0.1)
        postgres.kill()
        time.sleep(OUTAGE)
        postgres.start()
        crowd.join(120)
        assert {worker.exitcode for worker in crowd.workers} == {0}
        trials = crowd.study.get_trials()
    check_slots(trials, 24)
