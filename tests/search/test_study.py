"""Studies: reproducible, resumed to the study's target, and nothing lost with a worker."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import optuna
import pytest
import torch
from optuna.trial import TrialState
from stand_ins import SETTINGS, StandIn, make_study, reap, work

from multimodal import FlowpruneError
from search.digest import digest
from search.queue import claim
from search.reaper import HERE
from search.storages import journal_storage, sqlite_storage
from search.study import best_trial, done_trials, open_study, stopped_early
from search.worker import interruptible

ROOT = Path(__file__).parents[2]
DEAD = f"{HERE}:{2**22 + 7}"  # above the largest process id


def states(study: optuna.Study) -> list[TrialState]:
    """Of the trials that were begun; others wait in the queue."""
    return [trial.state for trial in study.get_trials() if trial.state != TrialState.WAITING]


def facts(study: optuna.Study) -> list[tuple]:
    return [(trial.number, trial.state, trial.params, trial.value) for trial in study.get_trials()]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_the_same_seed_gives_the_same_trials(sampler, tmp_path):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        study = make_study(tmp_path, name, sampler=sampler, startup=4, seed=seed, early_stopping=False)
        with torch.enable_grad():  # the GP needs it
            work(study, 7)
        runs.append(facts(study))
    assert len(runs[0]) == 7 and runs[0] == runs[1] != runs[2]


def test_a_resume_goes_on_to_the_studys_target(tmp_path):
    work(make_study(tmp_path), 3)
    first = facts(make_study(tmp_path))
    work(make_study(tmp_path), 5)
    study = make_study(tmp_path)
    assert facts(study)[:3] == first and len(done_trials(study)) == 5
    assert len({tuple(trial.params.values()) for trial in study.get_trials()}) == 5  # not the first three again
    work(make_study(tmp_path), 5)
    work(make_study(tmp_path), 2)
    assert len(study.get_trials()) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retention": 0.1}, r"Study 's' exists with other settings \(retention was 0.25 and is 0.1\): choose another"),
        ({"data": "xyz", "retention": 0.5}, r"\(data was abc and is xyz, retention was 0.25 and is 0.5\)"),
        ({"new": 1}, r"\(new was None and is 1\)"),
    ],
)
def test_other_settings_are_refused_by_name(changes, message, tmp_path):
    make_study(tmp_path)
    with pytest.raises(FlowpruneError, match=message):
        open_study(sqlite_storage(tmp_path / "studies.db"), "s", SETTINGS | changes)


def test_settings_survive_json(tmp_path):
    storage = sqlite_storage(tmp_path / "studies.db")
    for _ in range(2):
        open_study(storage, "s", {"ranges": {"a": (1, 2.0)}, "path": tmp_path, "none": None})
    assert digest({"b": 1, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1}) != digest({"a": [2, 1], "b": 1})


def test_a_study_file_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "text.db").write_text("not a database, by any means; " * 100)
    for path in (tmp_path / "file" / "studies.db", tmp_path / "text.db"):
        with pytest.raises(FlowpruneError, match=r"study file .* cannot be written .*set storage\.path=FILE"):
            sqlite_storage(path)


@pytest.mark.parametrize(
    "written", ["not json\n", "no end", '{"op_code": 99, "worker_id": "x"}\n', "[1, 2]\n", "{}\n{}"]
)
def test_a_file_that_is_no_journal_is_one_sentence_and_left_alone(written, tmp_path):
    path = tmp_path / "studies.journal"
    path.write_text(written)
    with pytest.raises(FlowpruneError, match=r"is not a journal of studies, or damaged: set storage\.path=FILE"):
        journal_storage(path)
    assert path.read_text() == written


def test_half_a_line_of_a_writer_that_died_ends_no_study(tmp_path):
    path = tmp_path / "studies.journal"
    optuna.create_study(study_name="s", storage=journal_storage(path)).ask()
    with path.open("ab") as file:
        file.write(b'{"op_code": 5, "worker')
    study = optuna.load_study(study_name="s", storage=journal_storage(path))
    study.set_user_attr("after", 1)
    found = optuna.load_study(study_name="s", storage=journal_storage(path))
    assert found.user_attrs == {"after": 1} and len(found.get_trials()) == 1


def test_a_clearly_worse_trial_stops_early(tmp_path):
    study, objective = make_study(tmp_path), StandIn(samples=24)
    for weight in (0.3, -1.0, 0.3001):
        study.enqueue_trial({"entropy_weight": weight})
    work(study, 3, objective)
    good, bad, close = study.get_trials()
    assert [stopped_early(trial) for trial in (good, bad)] == [False, True]
    assert bad.user_attrs["samples"] == len(bad.intermediate_values) < 24
    assert good.user_attrs["samples"] == len(good.intermediate_values) == 24
    assert good.value == pytest.approx(sum(good.intermediate_values.values()) / 24)
    assert close.user_attrs["samples"] > bad.user_attrs["samples"]
    shared = [bad.intermediate_values[step] - good.intermediate_values[step] for step in bad.intermediate_values]
    assert bad.value == pytest.approx(good.value + sum(shared) / len(shared))
    assert best_trial(study).number in (0, 2)


@pytest.mark.parametrize(("samples", "early_stopping"), [(4, True), (24, False)], ids=["one batch", "switched off"])
def test_a_trial_that_saw_every_sample_is_complete(samples, early_stopping, tmp_path):
    study = make_study(tmp_path, early_stopping=early_stopping)
    for weight in (0.3, -1.0, 1.0):
        study.enqueue_trial({"entropy_weight": weight})
    work(study, 3, StandIn(samples=samples))
    assert not any(stopped_early(trial) for trial in study.get_trials())


def test_a_discrepancy_that_is_no_number_ends_the_search(tmp_path):
    study = make_study(tmp_path)
    with pytest.raises(FlowpruneError, match=r"discrepancy of trial 0 is nan: .* model\.dtype"):
        work(study, 3, StandIn(spread=float("nan")))
    assert states(study) == [TrialState.FAIL]


@pytest.mark.parametrize("where", ["objective", "sampler", "start"])
def test_an_interrupt_leaves_no_trial_running(where, tmp_path, monkeypatch):
    study = make_study(tmp_path, early_stopping=False)

    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    objective = StandIn(during=interrupt if where == "objective" else lambda number: None)
    if where != "objective":
        target = study.sampler if where == "sampler" else optuna.Trial
        method = "infer_relative_search_space" if where == "sampler" else "set_user_attr"
        original = getattr(target, method)

        def stop(*args):
            if len(done_trials(study)) == 2:
                raise KeyboardInterrupt
            return original(*args)

        monkeypatch.setattr(target, method, stop)
    with pytest.raises(KeyboardInterrupt), interruptible(study, 5):
        work(study, 5, objective)
    monkeypatch.undo()
    assert TrialState.RUNNING not in states(study)
    assert states(study)[:3] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    resumed = make_study(tmp_path, early_stopping=False)
    assert reap(resumed, 5) == []
    work(resumed, 5)
    assert len(done_trials(resumed)) == 5 and {trial.state for trial in resumed.get_trials()} == {
        TrialState.COMPLETE,
        TrialState.FAIL,
    }


def test_an_interrupt_between_claiming_and_signing_leaves_no_trial_running(tmp_path, monkeypatch):
    study = make_study(tmp_path, early_stopping=False)
    original, interrupts = study._storage.set_trial_user_attr, []

    def sign(trial: int, name: str, value: object) -> None:
        if name == "worker" and len(done_trials(study)) == 2 and not interrupts:
            interrupts.append(trial)  # one signal: a worker ignores those that follow
            raise KeyboardInterrupt
        original(trial, name, value)

    monkeypatch.setattr(study._storage, "set_trial_user_attr", sign)
    with pytest.raises(KeyboardInterrupt), interruptible(study, 5):
        work(study, 5)
    assert interrupts and states(study)[:3] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    monkeypatch.undo()
    work(study, 5)
    assert len(done_trials(study)) == 5


def test_a_killed_workers_trial_is_failed_and_queued_once_more(killed):
    study = make_study(killed, early_stopping=False)
    assert states(study) == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    parameters = study.get_trials()[2].params
    assert parameters

    assert reap(study, 4) == [2]
    assert states(study)[2:] == [TrialState.FAIL]
    assert reap(study, 4) == []
    work(study, 4)
    retried = study.get_trials()[4]
    assert (retried.state, retried.params) == (TrialState.COMPLETE, parameters)
    assert retried.user_attrs["retry_of"] == 2
    assert len(done_trials(study)) == 4 and len(study.get_trials()) == 5


def test_who_puts_a_trial_back_may_be_killed_in_the_middle(killed, monkeypatch):
    """After it failed the trial and before it queued the slot: the parameters are tried again all the same."""
    study = make_study(killed, early_stopping=False)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reap(study, 4)
    lost = study.get_trials()[2]
    work(study, 4)
    [retried] = [trial for trial in study.get_trials() if trial.user_attrs.get("retry_of") == 2]
    assert lost.state == TrialState.FAIL and retried.params == lost.params
    assert retried.state == TrialState.COMPLETE and retried.user_attrs["slot"] == lost.user_attrs["slot"]
    assert len(done_trials(study)) == 4


def test_parameters_that_kill_their_worker_again_are_not_tried_again(killed):
    study = make_study(killed, early_stopping=False)
    parameters = study.get_trials()[2].params
    reap(study, 4)
    while claim(study, study.get_trials(), 4, {"worker": DEAD}):
        pass
    assert reap(make_study(killed, early_stopping=False), 4) == [3, 4]
    work(study, 4)
    assert len(done_trials(study)) == 4 and parameters not in [trial.params for trial in done_trials(study)]


def test_live_workers_and_other_hosts_keep_their_trials(tmp_path):
    study = make_study(tmp_path)
    other = subprocess.Popen(["sleep", "60"])
    try:
        workers = [f"{HERE}:{other.pid}", f"elsewhere:{2**22 + 7}", f"{HERE}:1", DEAD]
        for worker in workers:
            study.ask().set_user_attr("worker", worker)
        assert reap(study, 4) == [3]
        assert states(study)[:4] == [TrialState.RUNNING] * 3 + [TrialState.FAIL]
        other.send_signal(signal.SIGTERM)
        other.wait()
        assert reap(study, 4) == [0]
    finally:
        other.kill()
        other.wait()


def test_a_container_of_the_same_host_name_keeps_its_trials(tmp_path):
    """Its process ids mean something else here: only its heartbeat tells."""
    apart, say = ["unshare", "--pid", "--fork", "--mount-proc"], "from search.reaper import HERE; print(HERE)"
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespaces here")
    told = subprocess.run([*apart, sys.executable, "-c", say], check=True, capture_output=True, text=True, cwd=ROOT)
    there = told.stdout.strip()
    assert there.partition("/")[0] == HERE.partition("/")[0] == socket.gethostname()
    study = make_study(tmp_path)
    study.ask().set_user_attr("worker", f"{there}:{2**22 + 7}")
    assert reap(study, 4) == []


def test_where_nothing_tells_process_ids_apart_only_the_heartbeat_does(tmp_path, monkeypatch):
    monkeypatch.setattr("search.reaper.HERE", None)
    study = make_study(tmp_path)
    study.ask().set_user_attr("worker", f"{socket.gethostname()}:{2**22 + 7}")
    assert reap(study, 4) == []


def test_a_trial_that_is_worse_on_most_samples_but_better_on_average_goes_on(tmp_path):
    class Outliers(StandIn):
        def evaluate(self, config, after_batch):
            first = [1.0 if sample in (0, 4, 8) else 0.01 for sample in range(self.samples)]
            found = first if self.evaluations == 0 else [0.15] * 20 + [0.001] * (self.samples - 20)
            self.evaluations += 1
            for seen in range(4, self.samples + 1, 4):
                after_batch(found[:seen])
            return found

    study = make_study(tmp_path)
    work(study, 2, Outliers(samples=40))
    assert not any(stopped_early(trial) for trial in done_trials(study))
    assert best_trial(study).number == 1


def test_trials_are_compared_sample_by_sample_whatever_the_order_of_each_worker(tmp_path):
    """A worker whose batches come in another order finds a trial that is better on every sample, then a worse one."""

    class Reordered(StandIn):
        def evaluate(self, config, after_batch):
            self.evaluations += 1
            self.order = [5 * place % self.samples for place in range(self.samples)]
            more = (0, -0.001, 0.002)[self.evaluations]
            found = [0.01 * (1 + sample % 3) + more for sample in self.order]
            for seen in range(6, self.samples + 1, 6):
                after_batch(found[:seen])
            return found

    study = make_study(tmp_path)
    for _ in range(3):
        study.enqueue_trial({"entropy_weight": 0.3})
    work(study, 1, StandIn(samples=24, spread=0))
    work(study, 3, Reordered(samples=24))
    first, better, worse = study.get_trials()
    assert not stopped_early(better) and stopped_early(worse) and worse.user_attrs["samples"] == 6
    for trial, more in ((first, 0), (better, -0.001), (worse, 0.002)):
        assert all(value == pytest.approx(0.01 * (1 + n % 3) + more) for n, value in trial.intermediate_values.items())
    assert set(better.intermediate_values) == set(first.intermediate_values) == set(range(24))


def test_the_last_batch_is_reported_of_a_new_best_trial_alone(tmp_path):
    """Nothing asks for it of the others, and each sample is a transaction."""
    study, objective = make_study(tmp_path), StandIn(samples=4)
    for weight in (0.3, -1.0, 0.3):
        study.enqueue_trial({"entropy_weight": weight})
    work(study, 3, objective)
    assert [len(trial.intermediate_values) for trial in study.get_trials()] == [4, 0, 4]


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_a_trial_costs_one_read_of_all_trials_whatever_the_sampler(sampler, tmp_path, monkeypatch):
    study, reads = make_study(tmp_path, sampler=sampler, startup=3, early_stopping=False), []
    read = study._storage.get_all_trials
    with torch.enable_grad():
        work(study, 6)
        monkeypatch.setattr(study._storage, "get_all_trials", lambda *a, **more: reads.append(a) or read(*a, **more))
        work(study, 9)
    assert len(reads) == 3 + 3  # and two looks at an empty queue, one at a study that is done


def test_trials_carry_their_worker_and_config(tmp_path):
    study = make_study(tmp_path)
    work(study, 1)
    attributes = study.get_trials()[0].user_attrs
    assert attributes["worker"] == f"{HERE}:{os.getpid()}"
    assert attributes["parameters"]["query_threshold"] == attributes["config"]["method"]["query_threshold"]
    assert (attributes["retention"], attributes["kv_share"], attributes["samples"]) == (0.25, 0.3, 12)


@pytest.mark.parametrize("made", [lambda study: study.ask(), lambda study: study.set_user_attr("settings", "theirs")])
def test_a_study_that_something_else_made_is_refused(tmp_path, made):
    storage = sqlite_storage(tmp_path / "studies.db")
    made(optuna.create_study(study_name="theirs", storage=storage))
    with pytest.raises(FlowpruneError, match="'theirs' was not made by flowprune: choose another study=NAME"):
        open_study(storage, "theirs", {"model": "tiny"})


def test_a_file_of_another_optuna_is_refused(tmp_path):
    path = tmp_path / "studies.db"
    sqlite_storage(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE version_info SET schema_version = 99")
        database.execute("UPDATE alembic_version SET version_num = 'v9.9.0.a'")
        database.commit()
    with pytest.raises(FlowpruneError, match="made by another Optuna"):
        sqlite_storage(path)
