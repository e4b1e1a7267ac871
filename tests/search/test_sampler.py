"""The sampler: Optuna's Gaussian process on logarithms, and every budget of a front in turn."""

import math
from collections import Counter

import optuna
import pytest
import torch

from multimodal import FlowpruneError
from search.sampler import make_sampler
from search.space import BUDGET


@pytest.fixture(autouse=True)
def with_gradients():
    """As in a fresh process: the Gaussian process is fitted by its gradient."""
    with torch.enable_grad():
        yield


def bowl(trial: optuna.Trial) -> float:
    """Falls over orders of magnitude towards (0.3, 0.6)."""
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    return 1e-4 + (x - 0.3) ** 2 + (y - 0.6) ** 2


def test_it_is_optunas_on_the_logarithm():
    ours = optuna.create_study(sampler=make_sampler("gp", seed=3, startup=4))
    theirs = optuna.create_study(
        sampler=optuna.samplers.GPSampler(seed=3, n_startup_trials=4, deterministic_objective=True)
    )
    ours.optimize(bowl, n_trials=8)
    theirs.optimize(lambda trial: math.log(bowl(trial)), n_trials=8)
    for mine, other in zip(ours.trials, theirs.trials, strict=True):
        assert mine.params == pytest.approx(other.params, abs=1e-6)
        assert mine.value == pytest.approx(math.exp(other.value))


@pytest.mark.parametrize("running", [1, 3])
def test_each_budget_has_its_turn(running):
    study = optuna.create_study(sampler=make_sampler("gp", seed=0, startup=5), directions=["minimize"] * 2)
    asked = []
    while len(study.get_trials(deepcopy=False)) < 23:
        while len(asked) < running:
            trial = study.ask()
            budget = trial.suggest_int(BUDGET, 0, 2)
            asked.append((trial, (bowl(trial) / 10**budget, [0.05, 0.1, 0.25][budget])))
        study.tell(*asked.pop(0))
    tries = Counter(trial.params[BUDGET] for trial in study.get_trials(deepcopy=False))
    assert max(tries.values()) - min(tries.values()) <= 2


def test_an_unknown_sampler_is_refused():
    with pytest.raises(FlowpruneError, match=r"search\.sampler is 'grid': choose gp, tpe or random"):
        make_sampler("grid", 0, 1)
