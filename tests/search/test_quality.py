"""How good searches are on the shipped model at retention 0.1, every trial on all calibration samples.

pytest -m slow -s tests/search/test_quality.py    about two hours on one core (docs/search.md has the figures)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import mean, median, stdev

import optuna
import pytest
import torch
from hydra import compose, initialize_config_module
from optuna.distributions import CategoricalDistribution

from pipelines.calibration import observed
from pipelines.settings import Settings, check_settings, register_resolvers
from pipelines.space import make_space
from pipelines.workspace import Workspace
from search.objective import Objective
from search.sampler import make_sampler
from search.space import Space

pytestmark = pytest.mark.slow
SEEDS, TRIALS, MANY = range(20), 60, 100
RELEASED, RELEASED_STARTUP = 300, 27  # trials of the released VFlowOpt: a plain Gaussian process after random ones


@pytest.fixture(autouse=True)
def with_gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


@cache
def opened() -> tuple[Settings, Space, Objective]:
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        workspace = Workspace(check_settings(compose("config")))
    settings, model = workspace.settings, workspace.model
    samples = observed(workspace, workspace.samples("calibration"), "calibration").samples
    objective = Objective(model.modules, samples, settings.search.batch_size, settings.seed)
    return settings, make_space(settings, model.modules.geometry, objective.workload, model.normalization), objective


def sampler_of(name: str, seed: int) -> optuna.samplers.BaseSampler:
    settings, space, _ = opened()
    if name == "GPSampler":
        return optuna.samplers.GPSampler(seed=seed)
    if name == "released":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=RELEASED_STARTUP)
    return make_sampler(name, seed, settings.search.startup, space.guesses)


def shipped_model(trial: optuna.Trial) -> float:
    _, space, objective = opened()
    return mean(objective.evaluate(space.suggest(trial)))


def synthetic(trial: optuna.Trial) -> float:
    """Over the same parameters, a rippled bowl whose logarithm is known everywhere: the least value is near e^-6."""
    opened()[1].suggest(trial)
    logarithm = -6.0
    for number, (name, distribution) in enumerate(sorted(trial.distributions.items())):
        if isinstance(distribution, CategoricalDistribution):
            place = distribution.choices.index(trial.params[name]) / (len(distribution.choices) - 1)
        else:
            place, low, high = trial.params[name], distribution.low, distribution.high
            if distribution.log:
                place, low, high = math.log(place), math.log(low), math.log(high)
            place = (place - low) / (high - low)
        best = math.modf(0.35 + number * 0.618)[0]
        logarithm += 3 * (place - best) ** 2 + 0.05 * math.sin(40 * place)
    return math.exp(logarithm)


@cache
def search(
    sampler: str, seed: int, trials: int, workers: int = 1, landscape: Callable[[optuna.Trial], float] = shipped_model
) -> list[float]:
    """Discrepancies in the order in which trials end; each worker asks again as soon as its trial ends."""
    study = optuna.create_study(sampler=sampler_of(sampler, seed))
    running: list[tuple[optuna.Trial, float]] = []
    found: list[float] = []
    while len(found) < trials:
        while len(running) < min(workers, trials - len(found)):
            trial = study.ask()
            running.append((trial, landscape(trial)))
        trial, value = running.pop(0)
        study.tell(trial, value)
        found.append(value)
    return found


def trials_to_reach(found: list[float], target: float) -> float:
    return next((number for number, value in enumerate(found, 1) if value <= target), math.inf)


def show(title: str, values: Sequence[float]) -> None:
    print(f"\n{title}: median {median(values):.4g} of", *(f"{each:.3g}" for each in values), end="")


@pytest.mark.parametrize("sampler", ["gp", "GPSampler", "tpe", "random"])
def test_trials_to_reach_the_best_of_300(sampler):
    target = median(released := [min(search("released", seed, RELEASED)) for seed in SEEDS])
    show(f"the released method's way, best of {RELEASED}", released)
    searches = [search(sampler, seed, MANY if sampler == "gp" else TRIALS) for seed in SEEDS]
    for trials in (30, TRIALS, MANY) if sampler == "gp" else (30, TRIALS):
        show(f"{sampler}, best of {trials}", [min(found[:trials]) for found in searches])
    show(f"{sampler}, trials to {target:.3g}", reached := [trials_to_reach(found, target) for found in searches])
    if sampler == "gp":
        assert median(reached) <= TRIALS


@pytest.mark.parametrize("landscape", [synthetic, shipped_model])
def test_eight_workers_find_what_one_finds(landscape):
    """The same number of trials in total: the difference is within its own noise over seeds."""
    one, eight = ([min(search("gp", seed, MANY, workers, landscape)) for seed in SEEDS] for workers in (1, 8))
    show(f"{landscape.__name__}, one worker, best of {MANY}", one)
    show(f"{landscape.__name__}, eight workers, best of {MANY}", eight)
    log_one, log_eight = ([math.log(each) for each in found] for found in (one, eight))
    difference = mean(log_eight) - mean(log_one)
    noise = math.sqrt((stdev(log_one) ** 2 + stdev(log_eight) ** 2) / len(SEEDS))
    print(f"\n  eight / one: {math.exp(difference):.3f}, 95 % interval a factor of {math.exp(1.96 * noise):.3f}")
    assert difference < 1.96 * noise
