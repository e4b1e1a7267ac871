"""Workers whose time is up, or whose node is wanted by others: Slurm queues them again, and they go on."""

import re
import subprocess

import engines
import pytest
from launched_searches import QUICK, check_slots, complete, launched, load_study
from optuna.trial import TrialState

pytestmark = pytest.mark.usefixtures("workers_find_us", "unrendered")
TRIALS = 40
SMALL = ["cluster.workers=1", "cluster.gpus=0", "cluster.cpus=1", "cluster.hours=0.5", f"search.trials={TRIALS}"]


def slurm_says(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def restarts(job: str) -> int:
    return int(re.search(r"Restarts=(\d+)", slurm_says("scontrol", "show", "job", job)).group(1))


def test_workers_out_of_time_and_preempted_ones_are_queued_again(flowprune, slurm, in_postgres, tmp_path, monkeypatch):
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    command = [*QUICK, *in_postgres, "cluster=slurm", *SMALL, "study=requeued"]

    def detach(study) -> list:
        if complete(study):
            raise KeyboardInterrupt
        return []

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.cluster.watching.done_trials", detach)
        assert flowprune(*command)[0] == 130
    [worker], study = launched(tmp_path), load_study(command)

    slurm_says("scancel", "--signal=USR2", worker["id"])  # what Slurm sends before the time is up
    engines.wait_until(lambda: restarts(worker["id"]) == 1, 60, "a first requeue")
    done = len(complete(study))
    engines.wait_until(lambda: len(complete(study)) > done, 120, "a trial after it")

    slurm_says("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
    engines.wait_until(lambda: restarts(worker["id"]) == 2, 60, "a second requeue")
    assert len(complete(study)) < TRIALS

    code, printed = flowprune(*command, "stages=[watch]")
    assert code == 0 and f"best of {TRIALS} trials" in printed, printed
    check_slots(study, TRIALS)
    assert len({trial.user_attrs["worker"] for trial in complete(study)}) == 3
    put_back = [trial for trial in study.get_trials() if trial.state == TrialState.FAIL]
    retried = [trial.user_attrs["retry_of"] for trial in study.get_trials() if "retry_of" in trial.user_attrs]
    assert len(put_back) <= 2 and retried == [trial.number for trial in put_back if trial.params]
