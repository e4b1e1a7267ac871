"""Landscapes to compare samplers on: the shipped model's, as it was recorded, and a synthetic one.

Run as a program it records the former again, into ``landscape.csv``: configs of the default search that random and
model-based searches tried, each with its discrepancy over all calibration samples (about ten minutes).
"""

import csv
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import torch
from hydra import compose, initialize_config_module
from scipy.interpolate import RBFInterpolator

from multimodal.methods import method_named
from pipelines.calibrate import observed
from pipelines.data import load_samples
from pipelines.opened import open_model
from pipelines.settings import check_settings, register_resolvers
from pipelines.space import make_space
from search.objective import Objective
from search.sampler import make_sampler
from search.space import searched_parameters

RECORDED = Path(__file__).with_name("landscape.csv")
RUNS = [("random", 1000, 300), *(("gp", seed, 100) for seed in range(8)), ("tpe", 0, 100), ("tpe", 1, 100)]
SEARCHED = searched_parameters("vflowopt", {}, {})
UNIT = ("place_1", "place_2", "share_0", "share_1")
# how much faster than its neighbours' a parameter's influence changes, by five-fold cross-validation
SCALES = {
    "entropy_weight": 1.5,
    "recycling_weight": 0.35,
    "vision_layer": 2.25,
    "place_1": 2.1,
    "place_2": 0.2,
    "share_0": 1.5,
    "share_1": 0.15,
}

Landscape = Callable[[optuna.Trial], float]


def suggest(trial: optuna.Trial) -> dict[str, float | str]:
    """The parameters of the default search, but that a step's place is any number in [0, 1]."""
    found: dict[str, float | str] = {}
    for name, bounds in SEARCHED.items():
        if method_named("vflowopt").model_fields[name].annotation is int:
            found[name] = trial.suggest_int(name, int(bounds.low), int(bounds.high))
        else:
            found[name] = trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
    found |= {name: trial.suggest_float(name, 0, 1) for name in UNIT}
    return found | {"positions": trial.suggest_categorical("positions", ["compact", "original"])}


def place(parameters: dict[str, float | str]) -> list[float]:
    """Parameters in the unit cube, scaled."""
    cube = {}
    for name, bounds in SEARCHED.items():
        value, low, high = (
            math.log(each) if bounds.log else each for each in (float(parameters[name]), bounds.low, bounds.high)
        )
        cube[name] = (value - low) / (high - low)
    cube |= {name: float(parameters[name]) for name in UNIT}
    cube["positions"] = 0.5 * (parameters["positions"] == "original")
    return [SCALES.get(name, 1.0) * value for name, value in cube.items()]


@cache
def recorded_landscape() -> Landscape:
    """The shipped model's discrepancy at retention 0.1, interpolated between recorded configs on its logarithm."""
    with RECORDED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    places, which = np.unique([place(row) for row in rows], axis=0, return_index=True)
    logarithms = np.log([float(rows[number]["discrepancy"]) for number in which])
    surface = RBFInterpolator(places, logarithms, kernel="thin_plate_spline", smoothing=0.02)
    return lambda trial: float(np.exp(surface([place(suggest(trial))])[0]))


def synthetic_landscape(trial: optuna.Trial) -> float:
    """A narrow curved valley in the same parameters, over three orders of magnitude, with a broad false one beside."""
    x = np.array(place(suggest(trial)))
    bent = x[0] - 0.4 - 0.6 * (x[7] - 0.7) ** 2
    narrow = 4 * bent**2 + (x[7] / 1.5 - 0.5) ** 2 + 0.3 * (x[1] / 1.5 - 0.55) ** 2 + 0.1 * (x[2] - x[3]) ** 2
    broad = 0.02 + 0.5 * (x[0] - 0.9) ** 2 + 0.2 * (x[5] / 2.1 - 0.2) ** 2
    return float(0.0005 + min(narrow, broad) + 0.002 * x[9])


def record(path: Path) -> None:
    """Evaluate the default search's configs on the shipped model."""
    register_resolvers()
    with initialize_config_module("conf", version_base="1.3"):
        settings = check_settings(compose("config"))
    opened = open_model(settings.model)
    samples = observed(settings, load_samples(settings.data, "calibration", settings.seed), "calibration").samples
    objective = Objective(opened.family, samples, settings.search.batch_size, settings.seed)
    space = make_space(settings, opened.family, objective.workload, opened.pixels)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*SEARCHED, *UNIT, "positions", "discrepancy"])
        for name, seed, trials in RUNS:
            study = optuna.create_study(sampler=make_sampler(name, seed, settings.search.startup))
            for _ in range(trials):
                trial = study.ask()
                found = objective.evaluate(space.suggest(trial))
                study.tell(trial, sum(found) / len(found))
                unit = {name: trial.params[name] for name in UNIT}
                unit |= {name: (unit[name] + 0.5) / space.places for name in UNIT if name.startswith("place")}
                values = [*(trial.params[name] for name in SEARCHED), *unit.values()]
                writer.writerow(
                    [*(f"{v:.5g}" for v in values), trial.params["positions"], f"{sum(found) / len(found):.5g}"]
                )


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    record(RECORDED)
