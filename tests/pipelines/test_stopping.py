"""A search that is told to end: its trial goes back, what was found is written, and it says how it stands."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from search.objective import Objective

pytestmark = pytest.mark.usefixtures("unrendered")
QUICK = ("stages=[search]", "experiment=smoke", "search.batch_size=3", "budget.retention=0.2", "search.sampler=random")


def statuses(folder, kind: str) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments, f"tags.kind = '{kind}'")]


def test_sigterm_is_a_clean_stop_and_the_same_command_goes_on(flowprune, tmp_path, monkeypatch):
    evaluate, seen = Objective.evaluate, []

    def terminated_in_the_third(objective, *arguments):
        seen.append(arguments)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)  # never: the signal comes first
        return evaluate(objective, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "evaluate", terminated_in_the_third)
        code, printed = flowprune(*QUICK, "search.trials=4")
    assert code == 130 and "interrupted: what is finished is kept, the same command goes on." in printed
    study = optuna.load_study(study_name="smoke", storage=f"sqlite:///{tmp_path}/studies.db")
    assert [trial.state for trial in study.get_trials()].count(TrialState.COMPLETE) == 2
    assert not any(trial.state == TrialState.RUNNING for trial in study.get_trials())
    assert [t.user_attrs["error"] for t in study.get_trials() if t.state == TrialState.FAIL] == [
        "its worker was stopped"
    ]
    assert json.loads((tmp_path / "run" / "tuned.json").read_text())["provenance"]["study"] == "smoke"
    assert statuses(tmp_path, "study") == ["KILLED"]

    code, printed = flowprune(*QUICK, "search.trials=4")
    assert code == 0 and "best of 4 trials" in printed
    assert statuses(tmp_path, "study") == ["FINISHED"]

    code, printed = flowprune(*QUICK, "stages=[watch]", "budget.retention=0.3", "search.trials=9")  # the study knows
    assert code == 0 and "best of 4 trials" in printed
    code, printed = flowprune(*QUICK, "stages=[cancel]")
    assert code == 0 and "the study has its 4 trials, and stays as it is" in " ".join(printed.split())
    assert statuses(tmp_path, "study") == ["FINISHED"]


@pytest.mark.parametrize(("free", "named"), [(0, "the disk of output: free some, or set output;"), (2**40, "a disk: ")])
def test_a_full_disk_is_one_sentence(free, named, flowprune, tmp_path, monkeypatch):
    def full(*arguments, **options):
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr("pipelines.results.dump_study", full)
    of_output = tmp_path / "run"
    monkeypatch.setattr("shutil.disk_usage", lambda at: SimpleNamespace(free=free if at == of_output else 2**40))
    code, printed = flowprune(*QUICK, "search.trials=1")
    assert code == 2 and f"error: No space is left on {named}" in printed, printed
