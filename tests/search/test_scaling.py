"""How far a search grows: throughput of many workers, and what a trial costs the storage (docs/cluster.md has figures).

pytest -m slow -s tests/search/test_scaling.py    on an idle machine; about seven minutes
"""

import os
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from crowd import Crowd, runs_of, study_in
from mlflow_server import MlflowServer
from optuna.trial import TrialState, create_trial
from stand_ins import StandIn, work

from search.queue import fill
from search.study import done_trials

pytestmark = pytest.mark.slow
SECONDS, WORKERS, EACH = float(os.environ.get("TRIAL_SECONDS", 4)), (1, 4, 16), 12
RUNNING, MEASURED = (1, 10, 100, 300, 1000), 6


def throughput(workers: int, postgres, server: MlflowServer) -> float:
    """Trials a second, from the first trial's start to the last one's end."""
    target, name = workers * EACH, f"scaling-{workers}"
    with Crowd("postgres", postgres.settings, target, SECONDS, name, server.uri, early_stopping=False) as crowd:
        crowd.start(workers)
        crowd.join(target * SECONDS + 120)
        trials = crowd.study.get_trials()
    assert len(trials) == target
    took = max(t.datetime_complete for t in trials) - min(t.datetime_start for t in trials)
    return target / took.total_seconds()


def test_sixteen_workers_are_nearly_sixteen_times_as_fast(postgres, mlflow_server):
    began = spent_by("mlflow.server")
    rates = {workers: throughput(workers, postgres, mlflow_server) for workers in WORKERS}
    logged = spent_by("mlflow.server")
    last = study_in("postgres", postgres.settings, f"scaling-{WORKERS[-1]}", early_stopping=False)
    runs_of(last, mlflow_server.uri).sync("FINISHED")
    agreed = spent_by("mlflow.server")
    print(f"\ntrials of {SECONDS:g} s, PostgreSQL, tracked")
    for workers, rate in rates.items():
        print(f"  {workers:2} workers: {rate:.3f} trials/s, {rate / (workers * rates[1]):.2f} of {workers} times one")
    for what, seconds, trials in (
        ("a trial", logged - began, EACH * sum(WORKERS)),
        ("a trial of a study that is made to agree", agreed - logged, EACH * WORKERS[-1]),
    ):
        print(f"  CPU of the MLflow server: {1000 * seconds / trials:.1f} ms {what}")
    assert rates[16] >= 0.9 * 16 * rates[1]


@pytest.mark.parametrize("kind", ["postgres", "grpc"])
def test_what_a_trial_costs_beside_many_others(kind, postgres, request):
    """The default sampler's trials, after 60 random ones: each reads all trials that run."""
    options, name = postgres.settings if kind == "postgres" else request.getfixturevalue("proxy"), f"cost-{kind}"
    begun = study_in(kind, options, name, early_stopping=False)
    fill(begun, 10_000)
    work(begun, 60, StandIn())
    example = begun.get_trials()[0]
    facts = {fact: value for fact, value in example.user_attrs.items() if fact not in ("slot", "samples")}
    study = study_in(kind, options, name, sampler="gp", startup=10, early_stopping=False)
    print(f"\n{kind}: CPU milliseconds of a trial")
    for before, running in pairwise((1, *RUNNING)):
        for number in range(before, running):
            shown = facts | {"worker": f"other-{number}:{number}", "slot": 5_000 + number}
            like = {"params": example.params, "distributions": example.distributions, "user_attrs": shown}
            study.add_trial(create_trial(state=TrialState.RUNNING, **like))
        target = len(done_trials(study)) + MEASURED
        began = cpu_seconds()
        with torch.enable_grad():
            work(study, target, StandIn())
        worker, database, proxy = (1000 * (b - a) / MEASURED for a, b in zip(began, cpu_seconds(), strict=True))
        print(f"  {running:4} running: worker {worker:4.0f}, PostgreSQL {database:4.0f}, proxy {proxy:4.0f}")


def cpu_seconds() -> tuple[float, float, float]:
    """Of this process, the database's connections, and the proxy."""
    return time.process_time(), spent_by("postgres: flowprune"), spent_by("stages=.proxy")


def spent_by(pattern: str) -> float:
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True).stdout.split()
    stats = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in found]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")
