"""The sampler: Optuna's Gaussian process on logarithms, and every budget of a front in turn, learning from all."""

import math
from collections import Counter
from collections.abc import Callable

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


def suggested(value: Callable[[optuna.Trial], float], trials: int) -> list[dict[str, float]]:
    study = optuna.create_study(sampler=make_sampler("gp", seed=3, startup=4))
    study.optimize(value, n_trials=trials)
    return [trial.params for trial in study.trials]


def test_only_logarithms_count():
    """What is suggested is the same for a power of the discrepancy, and for a multiple."""
    plain = suggested(bowl, 8)
    powered = suggested(lambda trial: 1000 * bowl(trial) ** 2, 8)
    assert [list(params.values()) for params in powered] == [
        pytest.approx(list(params.values()), abs=1e-4) for params in plain
    ]


def test_how_bad_the_worse_half_is_does_not_count():
    """Trials that are worse than the median may be worse still, or all alike: the next one is the same."""
    values = [0.3, 0.02, 0.5, 0.1, 0.7]
    changed = [0.3, 0.02, 0.4, 0.1, 0.9]

    def recorded(known: list[float]) -> Callable[[optuna.Trial], float]:
        return lambda trial: (bowl(trial), [*known, 0.0][trial.number])[1]

    plain, other = (suggested(recorded(known), 6) for known in (values, changed))
    assert other[5] == pytest.approx(plain[5], abs=1e-4)


def test_the_next_trial_is_near_the_best():
    """In what is continuous, on its own scale; whole numbers and categories may be any."""

    def value(trial: optuna.Trial) -> float:
        trial.suggest_float("rate", 1e-4, 1, log=True)
        depth, kind = trial.suggest_int("depth", 0, 5), trial.suggest_categorical("kind", ["a", "b"])
        return bowl(trial) + 0.01 * abs(depth - 3) + 0.01 * (kind == "a")

    study = optuna.create_study(sampler=make_sampler("gp", seed=0, startup=4))
    seen: set[tuple[int, str]] = set()
    for number in range(24):
        study.optimize(value, n_trials=1)
        trial = study.trials[-1]
        if number >= 4:
            best = min(study.trials[:-1], key=lambda earlier: earlier.value).params
            assert all(abs(trial.params[name] - best[name]) <= 0.2 + 1e-9 for name in ("x", "y"))
            assert abs(math.log(trial.params["rate"] / best["rate"], 1e4)) <= 0.2 + 1e-9
            seen.add((trial.params["depth"], trial.params["kind"]))
    assert len(seen) > 2
    assert study.best_value < 0.02


def front(scale: float, trials: int, running: int = 1) -> list[optuna.trial.FrozenTrial]:
    """A search over three budgets, each with its own discrepancies: ``scale`` times less than the one before."""
    study = optuna.create_study(sampler=make_sampler("gp", seed=0, startup=5), directions=["minimize"] * 2)
    asked: list[tuple[optuna.Trial, tuple[float, float]]] = []
    while len(study.get_trials(deepcopy=False)) < trials:
        while len(asked) < running:
            trial = study.ask()
            budget = trial.suggest_int(BUDGET, 0, 2)
            asked.append((trial, (bowl(trial) / scale**budget, [0.05, 0.1, 0.25][budget])))
        study.tell(*asked.pop(0))
    return study.get_trials(deepcopy=False)


@pytest.mark.parametrize("running", [1, 3])
def test_each_budget_has_its_turn(running):
    tries = Counter(trial.params[BUDGET] for trial in front(10, 23, running))
    assert max(tries.values()) - min(tries.values()) <= 2


def test_budgets_learn_from_each_other():
    """However far apart their discrepancies are, a trial teaches every budget the same."""
    alike, apart = front(1, 14), front(100, 14)
    for one, other in zip(alike, apart, strict=True):
        assert other.params == pytest.approx(one.params, abs=1e-4)
    for budget in range(3):
        assert min(bowl(optuna.trial.FixedTrial(t.params)) for t in alike if t.params[BUDGET] == budget) < 0.02


def test_a_search_begins_with_its_guesses():
    """Whichever worker runs them; what is not guessed is random, and as many other trials are until the model."""
    guesses = [{"x": 0.1}, {"x": 0.2, "y": 0.3}, {"x": 0.4}]
    shared = optuna.storages.InMemoryStorage()
    workers = [
        optuna.create_study(
            storage=shared, study_name="s", load_if_exists=True, sampler=make_sampler("gp", seed, 5, guesses)
        )
        for seed in (1, 2)
    ]
    for number in range(7):
        workers[number % 2].optimize(bowl, n_trials=1)
    first, second, third, *others = (trial.params for trial in workers[0].trials)
    assert (first["x"], second, third["x"]) == (0.1, guesses[1], 0.4)
    assert len({params["y"] for params in (first, second, third, *others)}) == 7
    assert not {params["x"] for params in others} & {0.1, 0.2, 0.4}


def test_an_unknown_sampler_is_refused():
    with pytest.raises(FlowpruneError, match=r"search\.sampler is 'grid': choose gp, tpe or random"):
        make_sampler("grid", 0, 1)
