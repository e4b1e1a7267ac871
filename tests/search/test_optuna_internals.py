"""Optuna's private names that are used here do what they are used for: what fails here has changed in Optuna."""

import inspect

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from search.optuna_internals import claimed_trial, proxy_server, set_attribute, set_state


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trial(create_trial(state=TrialState.WAITING))
    return study


def test_a_waiting_trial_is_claimed_once(study):
    [trial] = study.get_trials()
    assert set_state(study, trial, TrialState.RUNNING) is True
    assert set_state(study, trial, TrialState.RUNNING) is False
    assert set_state(study, trial, TrialState.FAIL) is True
    with pytest.raises(UpdateFinishedTrialError):
        set_state(study, trial, TrialState.RUNNING)


def test_a_running_trial_is_told_things_until_it_ends(study):
    [trial] = study.get_trials()
    set_state(study, trial, TrialState.RUNNING)
    set_attribute(study, trial, "heartbeat", 3)
    assert study.get_trials()[0].user_attrs == {"heartbeat": 3}
    set_state(study, trial, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        set_attribute(study, trial, "heartbeat", 4)


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_a_claimed_trial_suggests_and_its_sampler_reads_nothing_again(sampler, monkeypatch):
    study = optuna.create_study(sampler=sampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
    study.add_trial(create_trial(state=TrialState.WAITING))
    known = study.get_trials()
    set_state(study, known[-1], TrialState.RUNNING)
    monkeypatch.setattr(study._storage, "get_all_trials", None)
    trial = claimed_trial(study, known[-1], known)
    assert 0 <= trial.suggest_float("x", 0, 1) <= 1 and trial.number == 12


def test_a_proxy_serves_a_storage():
    pytest.importorskip("grpc")
    assert list(inspect.signature(proxy_server).parameters) == ["storage", "host", "port", "threads"]
    from concurrent.futures import ThreadPoolExecutor

    server = proxy_server(optuna.storages.InMemoryStorage(), "127.0.0.1", 0, ThreadPoolExecutor(1))
    assert callable(server.start) and callable(server.wait_for_termination)


def test_every_call_of_a_storage_is_abstract():
    """What waits for a database that is away wraps these."""
    assert {"set_trial_state_values", "set_trial_user_attr", "get_all_trials"} <= BaseStorage.__abstractmethods__
