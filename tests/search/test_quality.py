"""How good searches are, on landscapes that cost nothing (docs/search.md has the figures).

pytest -m slow -s tests/search/test_quality.py    about forty minutes on one core
"""

import math
from collections.abc import Iterator
from functools import cache
from statistics import mean, median, quantiles, stdev

import optuna
import pytest
import torch
from landscapes import recorded_landscape, synthetic_landscape

from search.sampler import make_sampler

pytestmark = pytest.mark.slow
SEEDS, TRIALS, STARTUP = range(20), 100, 12
LANDSCAPES = {"shipped model": recorded_landscape, "synthetic": lambda: synthetic_landscape}


@pytest.fixture(autouse=True)
def with_gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


def sampler_of(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "gp, no logarithm":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, deterministic_objective=True)
    return make_sampler(name, seed, STARTUP)


@cache
def search(landscape: str, sampler: str, seed: int, trials: int = TRIALS, workers: int = 1) -> list[float]:
    """Values in the order in which trials end; each worker asks again as soon as its trial ends."""
    study, evaluate = optuna.create_study(sampler=sampler_of(sampler, seed)), LANDSCAPES[landscape]()
    running: list[tuple[optuna.Trial, float]] = []
    values: list[float] = []
    while len(values) < trials:
        while len(running) < min(workers, trials - len(values)):
            trial = study.ask()
            running.append((trial, evaluate(trial)))
        trial, value = running.pop(0)
        study.tell(trial, value)
        values.append(value)
    return values


def trials_to_reach(values: list[float], target: float) -> float:
    return next((number for number, value in enumerate(values, 1) if value <= target), math.inf)


@pytest.mark.parametrize("sampler", ["gp", "gp, no logarithm", "tpe", "random"])
def test_trials_to_reach_the_best_of_300(sampler):
    """Against the best of 300 random trials, and of the released method's budget of 300 trials, modelled."""
    best_random = median(min(search("shipped model", "random", seed, 300)) for seed in SEEDS)
    best_modelled = median(min(search("shipped model", "tpe", seed, 300)) for seed in SEEDS)
    found = [search("shipped model", sampler, seed) for seed in SEEDS]
    report = {f"best of {n}": median(min(values[:n]) for values in found) for n in (30, 60, 100)}
    to_random = sorted(trials_to_reach(values, best_random) for values in found)
    to_modelled = sorted(trials_to_reach(values, best_modelled) for values in found)
    print(f"\n{sampler}: {report}")
    print(f"  to the best of 300 random ({best_random:.5f}): median {median(to_random)}, {to_random}")
    print(f"  to the best of 300 tpe ({best_modelled:.5f}): median {median(to_modelled)}, {to_modelled}")
    if sampler == "gp":
        assert median(to_random) <= 60


@pytest.mark.parametrize("landscape", LANDSCAPES)
def test_eight_workers_find_what_one_finds(landscape):
    """The same number of trials in total: the difference is within its own noise over seeds."""
    one, eight = (
        [math.log(min(search(landscape, "gp", seed, workers=workers))) for seed in SEEDS] for workers in (1, 8)
    )
    difference = mean(eight) - mean(one)
    noise = math.sqrt((stdev(one) ** 2 + stdev(eight) ** 2) / len(SEEDS))
    for workers, logarithms in ((1, one), (8, eight)):
        low, middle, high = (math.exp(each) for each in quantiles(logarithms))
        print(f"\n{landscape}, {workers} workers: quartiles {low:.5f} {middle:.5f} {high:.5f}", end="")
    print(f"\n  eight / one: {math.exp(difference):.3f}, 95 % interval a factor of {math.exp(1.96 * noise):.3f}")
    assert difference < 1.96 * noise
