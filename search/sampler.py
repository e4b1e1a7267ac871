"""Which trial comes next: Optuna's samplers, with the Gaussian process fitted to what a search needs."""

import math
from collections import Counter
from copy import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import torch
from optuna._gp.acqf import BaseAcquisitionFunc
from optuna._gp.search_space import SearchSpace
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from multimodal import FlowpruneError
from search.space import BUDGET

# points beside the best trials: how many, how far (of a parameter's range), and how likely a parameter is changed
NEAR, STEP, MOVED, SWITCHED = 512, 0.1, 0.3, 0.1


def make_sampler(name: str, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name: ``gp``, ``tpe`` or ``random``.

    Raises:
        FlowpruneError: there is none of that name.
    """
    if name == "gp":
        return LogGPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise FlowpruneError(f"search.sampler is {name!r}: choose gp, tpe or random.")


class LogGPSampler(optuna.samplers.GPSampler):
    """Optuna's GPSampler on the discrepancy's logarithm, looking closely around the best trials, a budget at a time.

    Discrepancies span orders of magnitude, and the least ones matter. Their best region is small in ten dimensions:
    starts spread over the whole space seldom lead the acquisition's optimiser into it.

    With several budgets each has its turn (running trials count), and one Gaussian process with the budget among its
    inputs learns from all: of each budget it sees how much worse a trial is than the best one, so that improving on
    the best is the same threshold for each.
    """

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        logarithms = [math.log(max(trial.values[0], 1e-12)) for trial in completed_trials]
        best: dict[Any, int] = {}  # budget -> where its best trial is
        for number, trial in enumerate(completed_trials):
            budget = trial.params.get(BUDGET)
            best[budget] = min(best.get(budget, number), number, key=logarithms.__getitem__)
        self._best = SearchSpace(search_space).get_normalized_params([completed_trials[each] for each in best.values()])
        self._held: tuple[int, int] | None = None  # which parameter the budget is, and which choice has its turn
        if BUDGET in search_space:
            tries = Counter(trial.params.get(BUDGET) for trial in completed_trials + running_trials)
            choices = cast(IntDistribution, search_space[BUDGET]).high + 1
            self._held = list(search_space).index(BUDGET), min(range(choices), key=lambda choice: tries[choice])
        worse = [
            _valued(trial, logarithm - logarithms[best[trial.params.get(BUDGET)]])
            for trial, logarithm in zip(completed_trials, logarithms, strict=True)
        ]
        one = cast(optuna.Study, SimpleNamespace(directions=[StudyDirection.MINIMIZE]))
        return super()._sample_relative_impl(one, worse, running_trials, search_space)

    def _optimize_acqf(self, acqf: BaseAcquisitionFunc, best_params: np.ndarray | None) -> np.ndarray:
        if self._held is None:
            return super()._optimize_acqf(acqf, self._starts(acqf))
        column, choice = self._held
        choices = acqf.search_space.get_choices_of_discrete_params()
        value = choices[list(acqf.search_space.discrete_indices).index(column)][choice]
        held = _Held(acqf, column, value)
        found = super()._optimize_acqf(held, self._starts(held))
        found[column] = value
        return found

    def _starts(self, acqf: BaseAcquisitionFunc) -> np.ndarray:
        """The best trials and the most promising of many points beside them, as unit-cube rows."""
        rng, space = self._rng.rng, acqf.search_space
        near = self._best[rng.randint(len(self._best), size=NEAR)]
        steps = rng.normal(0, STEP, near.shape) * (rng.rand(*near.shape) < MOVED)
        near[:, space.continuous_indices] = np.clip((near + steps)[:, space.continuous_indices], 0, 1)
        for column, choices in zip(space.discrete_indices, space.get_choices_of_discrete_params(), strict=True):
            moved = rng.rand(NEAR) < SWITCHED
            near[moved, column] = rng.choice(choices, moved.sum())
        promising = near[np.argsort(-acqf.eval_acqf_no_grad(near))]
        return np.concatenate([self._best, promising])[: self._n_local_search // 2 + 1]


class _Held(BaseAcquisitionFunc):
    """An acquisition function with one parameter held."""

    def __init__(self, inner: BaseAcquisitionFunc, column: int, value: float) -> None:
        self._inner, self._column, self._value = inner, column, value
        super().__init__(inner.length_scales, inner.search_space)

    def eval_acqf(self, x: torch.Tensor) -> torch.Tensor:
        held = x.clone()
        held[..., self._column] = self._value
        return self._inner.eval_acqf(held)


def _valued(trial: FrozenTrial, value: float) -> FrozenTrial:
    valued = copy(trial)
    valued.values = [value]
    return valued
