"""A search that takes no time: an objective that is a formula, and a worker that waits to be killed."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna

from multimodal import PruningConfig
from multimodal.costs import Workload
from multimodal.layout import Layout
from search.budget import share_of
from search.choice import MethodChoice
from search.reaper import Reaper
from search.space import Space
from search.storages import sqlite_storage
from search.study import open_study
from search.tracking import StudyRuns, Tracker, open_store
from search.worker import run_worker

MODEL = {"id": "stand-in", "revision": None, "architecture": "StandIn", "layers": 6}
SETTINGS = {"method": "vflowopt", "retention": 0.25, "data": "abc", "model": MODEL}
WORKLOAD = Workload(
    SimpleNamespace(num_hidden_layers=6, hidden_size=12, intermediate_size=20, num_attention_heads=3),
    [([Layout(((8, 8),))], 5)],
)
SPACE = Space(
    choices=[MethodChoice("vflowopt", {"vision_layer": -1})],
    measure="retention",
    budgets=[0.25],
    cost=share_of(WORKLOAD, "retention"),
    steps=2,
    layers=6,
    positions=["compact", "original"],
    normalization=((0.5,) * 3, (0.5,) * 3),
)


class StandIn:
    """Discrepancies that fall with the entropy weight's distance from 0.3; samples differ, the same in every trial.

    Args:
        samples: how many.
        during: called with the number of evaluations so far, before each.
        spread: noise of a trial's samples.
    """

    def __init__(self, samples: int = 12, during: Callable[[int], None] = lambda number: None, spread: float = 0.001):
        self.samples, self.during, self.spread = samples, during, spread
        self.order = list(range(samples))
        self.evaluations = 0

    def shares(self, config: PruningConfig) -> dict[str, float]:
        return {"retention": 0.25, "flops_share": 0.4, "kv_share": 0.3}

    def evaluate(self, config: PruningConfig, after_batch: Callable[[list[float]], None]) -> list[float]:
        self.during(self.evaluations)
        self.evaluations += 1
        away, noise = abs(config.method.entropy_weight - 0.3), random.Random(str(config.method))
        found: list[float] = []
        for sample in range(self.samples):
            found.append(0.01 * (1 + sample % 3) + 0.1 * away + self.spread * noise.random())
            if sample % 4 == 3:
                after_batch(found)
        return found


def make_study(folder: Path, name: str = "s", **options) -> optuna.Study:
    return open_study(sqlite_storage(folder / "studies.db"), name, SETTINGS, **({"sampler": "random"} | options))


def make_runs(folder: Path, study: optuna.Study) -> StudyRuns:
    return StudyRuns(open_store(f"sqlite:///{folder}/mlflow.db"), study, "flowprune-tests", folder / "artifacts")


def make_tracker(folder: Path, study: optuna.Study) -> Tracker:
    return Tracker(make_runs(folder, study))


def work(
    study: optuna.Study,
    trials: int,
    objective: StandIn | None = None,
    tracker: Tracker | None = None,
    place: int = 0,
) -> None:
    run_worker(
        study,
        SPACE,
        objective or StandIn(),
        trials,
        lambda trial: tracker and tracker.start_trial(trial.number),
        lambda trial: tracker and tracker.end_trial(trial),
        place,
    )


def reap(study: optuna.Study, trials: int) -> list[int]:
    return Reaper(study, trials).reap(study.get_trials())


def wait_to_be_killed(folder: Path) -> None:
    """Work on a study in that folder, whose third trial never ends; ``waiting`` is there when that is logged."""
    store = open_store(f"sqlite:///{folder}/mlflow.db")

    def wait(number: int) -> None:
        if number == 2:
            while not store.search_runs(["1"], "tags.trial = '2'"):  # the tracker's thread logs it
                time.sleep(0.05)
            (folder / "waiting").touch()
            time.sleep(600)

    study = make_study(folder, early_stopping=False)
    work(study, 4, StandIn(during=wait), make_tracker(folder, study))
