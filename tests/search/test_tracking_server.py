"""Several workers, a real server that is killed in mid-search, and a worker that is killed, too."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from stand_ins import SETTINGS, StandIn, work
from test_tracking import check_runs, wait_for

import search.tracking.tracker
from search.storages import journal_storage
from search.study import done_trials, open_study
from search.tracking import StudyRuns, Tracker, open_store

WORKERS, TRIALS = 4, 40


def make_study(folder: Path, worker: int = 0) -> optuna.Study:
    return open_study(journal_storage(folder / "journal.log"), "server", SETTINGS, "random", worker=worker)


def make_runs(study: optuna.Study, uri: str) -> StudyRuns:
    return StudyRuns(open_store(uri), study, "flowprune-server", None)


def run_worker(folder: Path, uri: str, worker: int) -> None:
    search.tracking.tracker.FIRST_PAUSE, search.tracking.tracker.LONGEST_PAUSE = 0.2, 1.0
    study = make_study(folder, worker)
    tracker = Tracker(make_runs(study, uri))
    work(study, TRIALS, StandIn(during=lambda number: time.sleep(0.1)), tracker)
    tracker.close()
    os._exit(0)  # not the test's own clean-up


@pytest.fixture(scope="module")
def searched(mlflow_server, tmp_path_factory) -> optuna.Study:
    """A study whose four workers started at the same moment and met every kind of trouble."""
    folder = tmp_path_factory.mktemp("searched")
    study = make_study(folder)
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=run_worker, args=(folder, mlflow_server.uri, number)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    wait_for(lambda: len(done_trials(study)) >= TRIALS // 4, 60)
    mlflow_server.kill()
    wait_for(lambda: len(done_trials(study)) >= TRIALS // 2, 60)
    os.kill(workers[0].pid, signal.SIGKILL)
    mlflow_server.start()
    mlflow_server.wait()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0, 0, 0]
    return study


def test_mlflow_agrees_with_optuna_one_to_one(searched, mlflow_server):
    assert len(done_trials(searched)) == TRIALS
    check_runs(MlflowClient(mlflow_server.uri), searched)
    assert make_runs(searched, mlflow_server.uri).sync("FINISHED") == 0


def test_an_emptied_server_is_filled_from_the_study(searched, mlflow_server):
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name("flowprune-server").experiment_id
    for run in client.search_runs([experiment]):
        client.delete_run(run.info.run_id)
    make_runs(searched, mlflow_server.uri).sync("FINISHED")
    check_runs(client, searched)
