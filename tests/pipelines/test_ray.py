"""Searches whose workers are jobs of a real Ray of two nodes, from the command line."""

import os
import re
import shlex
import signal
from pathlib import Path

import engines
import optuna
import pytest
import requests
from launched_searches import QUICK, complete, interrupted_cancelled_and_finished, launched, load_study, words
from optuna.trial import TrialState

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
pytestmark = pytest.mark.usefixtures("workers_find_us", "unrendered")


@pytest.fixture
def command(ray, postgres, in_postgres, tmp_path, monkeypatch) -> list[str]:
    """The one on the page, for a small search; the database's password is in a file."""
    login = tmp_path / "pgpass"
    login.write_text(f"127.0.0.1:{postgres.port}:*:flowprune:{engines.PASSWORD}\n")
    login.chmod(0o600)
    for name, value in (ray | {"PGPASSFILE": str(login)}).items():
        monkeypatch.setenv(name, value)
    [written] = re.findall(r"^flowprune (stages=\[search\] cluster=ray .*)$", PAGE.read_text(), re.MULTILINE)
    kept = [each for each in shlex.split(written) if not each.startswith(("storage=", "tracking=", "search.trials="))]
    return [*kept, *QUICK, *in_postgres, "cluster.cpus=1", "cluster.gpus=0.6"]  # which is a node for each worker


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.gpus=2"], "has all that a worker asks for, and the most on any is 2 CPU, 1 GPU: lower"),
        (["+cluster.resources.A100=1"], "and the most on any is 2 CPU, 1 GPU, 0 A100: lower"),
        (["cluster.gpus=1.5"], "cluster.gpus is 1.5: give a share of one GPU, or a whole number"),
        (["cluster.address=ray://head:10001"], "cluster.address is ray://head:10001: give that of Ray's dashboard"),
        (["cluster.address=http://me:word@head:8265"], "cluster.address is http://***@head:8265: give that"),
        (["cluster.address=http://head:8265"], "RAY_API_SERVER_ADDRESS names another Ray, and overrules"),
        (["cluster.environment=[HF_HOME,PGPASSWORD]"], "cluster.environment has PGPASSWORD, and Ray's dashboard"),
    ],
)
def test_what_ray_would_refuse_or_show_is_one_sentence(overrides, message, flowprune, command):
    code, printed = flowprune(*command, *overrides)
    assert code == 2 and "Traceback" not in printed
    assert message in words(printed)


def test_no_ray_or_no_token_is_one_sentence(flowprune, command, monkeypatch):
    with monkeypatch.context() as patch:  # Ray reads the token once a process
        patch.setattr("ray.dashboard.modules.dashboard_sdk.get_auth_headers_if_auth_enabled", lambda headers: {})
        code, printed = flowprune(*command)
    assert code == 2 and "wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN." in words(printed)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    code, printed = flowprune(*command)
    assert code == 2 and "No Ray answers at http://127.0.0.1:1: set cluster.address" in words(printed)


def test_from_submission_over_interruption_to_the_end(flowprune, ray, command, tmp_path, monkeypatch):
    interrupted_cancelled_and_finished(flowprune, command, tmp_path, monkeypatch)
    answer = requests.get(
        f"{ray['RAY_API_SERVER_ADDRESS']}/api/jobs/",
        headers={"Authorization": f"Bearer {ray['RAY_AUTH_TOKEN']}"},
        timeout=10,
    )
    assert "PGPASSFILE" in answer.text and engines.PASSWORD not in answer.text
    nodes = {job["submission_id"]: job["driver_node_id"] for job in answer.json()}
    first, second = (worker["id"].rpartition("/")[2] for worker in launched(tmp_path)[:2])
    assert nodes[first] != nodes[second]


def test_a_killed_worker_is_told_and_its_trial_put_back(flowprune, command, monkeypatch):
    killed = set()

    def kill_at_work(study: optuna.Study) -> list:
        for trial in study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and "worker" in trial.user_attrs and not killed:
                killed.add(trial.user_attrs["worker"])
                os.kill(int(trial.user_attrs["worker"].rpartition(":")[2]), signal.SIGKILL)
        return complete(study)

    command = [*command, "study=killed", "search.trials=40", "cluster.workers=1"]
    monkeypatch.setattr("pipelines.cluster.watching.done_trials", kill_at_work)
    code, printed = flowprune(*command)
    assert code == 2 and "No worker is left and" in words(printed), printed
    assert "it ended without a word, perhaps killed or out of memory" in words(printed) and "code -9" in words(printed)
    trials = [trial for trial in load_study(command).get_trials() if trial.user_attrs.get("worker") in killed]
    assert trials and not [trial for trial in trials if trial.state == TrialState.RUNNING]
