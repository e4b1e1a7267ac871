"""Searches whose workers are launched, from the command line: on this host and on a real Slurm of two nodes."""

import math
import os
import shutil
from types import SimpleNamespace
from typing import Any

import engines
import optuna
import pytest
from launched_searches import QUICK, check_slots, interrupted_cancelled_and_finished, launched, words
from mlflow.tracking import MlflowClient

from multimodal import FlowpruneError
from pipelines import worker
from pipelines.cluster import slurm as slurm_cluster
from pipelines.settings import SlurmCluster
from search.reaper import HERE
from search.storages import journal_storage

pytestmark = pytest.mark.usefixtures("workers_find_us", "unrendered")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["cluster=local"],
            "storage=sqlite is for one worker, and cluster.workers is 2: set storage=journal on",
        ),
        (
            ["cluster=slurm", "cluster.workers=1"],
            "storage=sqlite is for workers on one host, and cluster=slurm has",
        ),
        (
            ["cluster=slurm", "storage=journal"],
            "storage=journal is for workers on one host, and cluster=slurm has",
        ),
        (
            ["cluster=ray", "storage=journal"],
            "storage=journal is for workers on one host, and cluster=ray has",
        ),
        (["storage=postgres", "storage.port=1"], "No PostgreSQL answers at 127.0.0.1:1 (Connection refused"),
        (
            ["storage=grpc", "storage.port=1"],
            "No storage proxy answers at 127.0.0.1:1: start one with",
        ),
        (["+storage.password=x", "storage=postgres"], "storage.postgres.password is not a known key"),
        (["stages=[watch]"], "has no study 'smoke': run stages=[search] first, or set study=NAME"),
        (["stages=[proxy]"], "stages=[proxy] serves a database, and storage is sqlite: set storage=postgres"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(overrides, message, flowprune, monkeypatch):
    monkeypatch.setattr("search.storages.grpc.ANSWER_SECONDS", 0.5)
    code, printed = flowprune(*QUICK, *overrides)
    assert code == 2 and "Traceback" not in printed
    assert message in words(printed)


def test_no_password_gets_in_or_out(flowprune, in_postgres, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "wr0ng-one")
    code, printed = flowprune(*QUICK, *in_postgres)
    assert code == 2 and "refused (password authentication failed for user" in words(printed)
    assert "check PGPASSWORD or ~/.pgpass" in words(printed) and "wr0ng-one" not in printed
    monkeypatch.setenv("PGPASSWORD", engines.PASSWORD)
    code, printed = flowprune(*QUICK, *in_postgres, "storage.database=nope")
    assert code == 2 and "has no database 'nope': createdb nope" in words(printed)
    code, printed = flowprune(*QUICK, "tracking.uri=http://me:wr0ng-one@127.0.0.1:1")
    assert code == 2 and "No MLflow tracking store answers at http://***@127.0.0.1:1" in words(printed)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"wr0ng-one" in path.read_bytes() for path in files)


def test_more_workers_than_gpus_are_refused(flowprune, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    journal = ["storage=journal", f"storage.path={tmp_path}/studies.journal", "cluster=local", "cluster.workers=3"]
    code, printed = flowprune(*QUICK, *journal, "model.device=cuda")
    assert code == 2 and "cluster.workers is 3 and this host shows 2 GPUs: set cluster.workers=2." in words(printed)


def test_workers_of_this_host(flowprune, tmp_path):
    journal = ["storage=journal", f"storage.path={tmp_path}/studies.journal"]
    code, printed = flowprune(*QUICK, *journal, "cluster=local", "search.trials=6")
    assert code == 0, printed
    study = optuna.load_study(study_name="smoke", storage=journal_storage(tmp_path / "studies.journal"))
    check_slots(study, 6)
    assert {trial.user_attrs["worker"] for trial in study.get_trials()}.isdisjoint({f"{HERE}:{os.getpid()}"})
    assert (tmp_path / "run" / "tuned.json").exists() and "best of 6 trials" in printed
    assert [worker["number"] for worker in launched(tmp_path)] == [0, 1]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    assert sorted(int(run.data.tags["trial"]) for run in runs) == list(range(6))
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_workers_own_failure_is_said_where_it_was_launched(flowprune, tmp_path, model_path, monkeypatch):
    """On a node without the model, whose worker runs here, and what it says there."""
    model, python, said = tmp_path / "model", tmp_path / "python", tmp_path / "said"
    shutil.copytree(model_path, model)
    python.write_text(f"#!/bin/sh\ncat {said}\nexit 1\n")
    python.chmod(0o755)
    said.touch()
    monkeypatch.setattr("pipelines.cluster.local.sys.executable", str(python))
    command = [*QUICK, "storage=journal", f"storage.path={tmp_path}/studies.journal", f"model.path={model}"]
    command += ["cluster=local", "cluster.workers=1"]
    code, printed = flowprune(*command)
    assert code == 2 and "it ended without a word, perhaps killed or out of memory; its log is empty" in words(printed)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("pipelines.model._opened", {})
        patch.setattr("pipelines.worker.stop_on", lambda numbers: None)
        patch.setattr("sys.argv", ["worker", str(tmp_path / "run" / "workers" / "settings.json"), "0"])
        model.rename(tmp_path / "gone")
        worker.main()
    said.write_text(stop.value.code)
    (tmp_path / "gone").rename(model)
    code, printed = flowprune(*command)
    assert code == 2 and f"worker 1 failed: The model {model} does not exist" in words(printed), printed
    assert "No worker is left and 0 of 4 trials are done" in words(printed)


@pytest.mark.parametrize(
    "limit, hours", [("infinite", math.inf), ("30:00", 0.5), ("1:00:00", 1), ("2-12:00:00", 60), ("n/a", math.inf)]
)
def test_time_limits_of_slurm(limit, hours):
    assert slurm_cluster.limit_hours(limit) == hours


def test_the_hours_that_a_refusal_names_are_taken(monkeypatch):
    monkeypatch.setattr("pipelines.cluster.slurm._ask", lambda *command: "main* 40:00")

    def asked(hours: float) -> Any:
        cluster = {"workers": 1, "gpus": 0, "cpus": 1, "hours": hours, "options": {}}
        nothing = dict.fromkeys(("partition", "account", "qos", "memory"))
        return SimpleNamespace(cluster=SlurmCluster(kind="slurm", **cluster, **nothing))

    with pytest.raises(FlowpruneError, match=r"set cluster\.hours=0\.666667,"):
        slurm_cluster.check(asked(12))
    slurm_cluster.check(asked(0.666667))


def test_slurm_from_submission_over_interruption_to_the_end(flowprune, slurm, in_postgres, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    small = ["cluster.gpus=0", "cluster.cpus=1", "cluster.hours=0.5"]
    command = [*QUICK, *in_postgres, "cluster=slurm", *small]
    code, printed = flowprune(*command, "cluster.partition=nope")
    assert code == 2 and "Slurm has no partition 'nope': set cluster.partition to one of main, urgent" in words(printed)
    code, printed = flowprune(*command, "cluster.hours=12")
    assert code == 2 and "Slurm's partition main lets a job run 1 h: set cluster.hours=1," in words(printed)
    interrupted_cancelled_and_finished(flowprune, command, tmp_path, monkeypatch)
