"""What tests of searches with launched workers share."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from search.storages import postgres_storage

QUICK = ("stages=[search]", "experiment=smoke", "search.batch_size=3", "budget.retention=0.2", "search.sampler=random")
NEVER = 100_000  # trials, which no machine has done before it is told to stop


def interrupted_cancelled_and_finished(
    flowprune, command: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over two workers in PostgreSQL: left, stopped, gone on with by one more, watched."""
    [kind] = [argument.removeprefix("cluster=") for argument in command if argument.startswith("cluster=")]
    command = [*command, f"study=left-on-{kind}", f"search.trials={NEVER}", "cluster.workers=2"]

    def interrupt_after_two(study: optuna.Study) -> list:
        if len(complete(study)) >= 2:
            raise KeyboardInterrupt
        return complete(study)

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.cluster.watching.done_trials", interrupt_after_two)
        code, printed = flowprune(*command)
    assert code == 130 and "2 workers go on." in printed, printed
    watch, cancel = (shlex.split(line) for line in re.findall(r"them: flowprune (.*)", printed))  # from any folder
    (folder / "elsewhere").mkdir()
    study = load_study(command)

    with monkeypatch.context() as patch:
        patch.chdir(folder / "elsewhere")
        code, printed = flowprune(*cancel)
    stopped = f"2 workers stopped with {len(complete(study))} of {NEVER} trials done"
    assert code == 0 and stopped in words(printed), printed
    assert not [trial for trial in study.get_trials() if trial.state == TrialState.RUNNING]
    before = {trial.number: trial.params for trial in complete(study)}
    assert 2 <= len(before) < NEVER

    target = len(before) + 6
    command = [*command, f"search.trials={target}"]
    code, printed = flowprune(*command, "cluster.workers=1")
    assert code == 0 and f"best of {target} trials" in printed, printed
    assert "1 worker " in words(printed), printed  # how it stands, though nobody sees a progress bar here
    check_slots(study, target)
    assert all(study.get_trials()[number].params == params for number, params in before.items())
    assert [worker["kind"] for worker in launched(folder)] == [kind] * 3
    assert all("job" in trial.user_attrs for trial in complete(study))
    with monkeypatch.context() as patch:
        patch.chdir(folder / "elsewhere")
        code, printed = flowprune(*watch)
    assert code == 0 and f"best of {target} trials" in printed, printed


def complete(study: optuna.Study) -> list:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]


def check_slots(study: optuna.Study, target: int) -> None:
    assert sorted(trial.user_attrs["slot"] for trial in complete(study)) == list(range(target))


def launched(folder: Path) -> list[dict]:
    return json.loads((folder / "run" / "workers" / "launched.json").read_text())


def load_study(command: Sequence[str]) -> optuna.Study:
    """The study that a command made in PostgreSQL."""
    given = dict(override.split("=", 1) for override in command)
    names = ("host", "database", "user")
    options = {name: given[f"storage.{name}"] for name in names} | {"port": int(given["storage.port"])}
    return optuna.load_study(study_name=given["study"], storage=postgres_storage(**options))


def words(printed: str) -> str:
    return " ".join(printed.split())
