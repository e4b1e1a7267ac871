"""Which trial comes next: Optuna's samplers, with the Gaussian process fitted to what a search needs."""

from collections import Counter
from copy import copy
from typing import Any, cast

import numpy as np
import optuna
import torch
from optuna._gp.acqf import BaseAcquisitionFunc
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial

from multimodal import FlowpruneError
from search.space import BUDGET


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
    """Optuna's GPSampler on the objectives' logarithms, and with several budgets on each of them in turn.

    Discrepancies span orders of magnitude, and the least ones matter. A front's hypervolume grows most at the budgets
    that lose most, so left to itself it hardly tries the others. Running trials count as tries.
    """

    _held: int | None = None  # the budget whose turn it is

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        self._held = None
        if BUDGET in search_space:
            tries = Counter(trial.params.get(BUDGET) for trial in completed_trials + running_trials)
            budgets = cast(IntDistribution, search_space[BUDGET]).high + 1
            self._held = min(range(budgets), key=lambda number: tries[number])
            self._column = list(search_space).index(BUDGET)
        logged = [_logged(trial) for trial in completed_trials]
        return super()._sample_relative_impl(study, logged, running_trials, search_space)

    def _optimize_acqf(self, acqf: BaseAcquisitionFunc, best_params: np.ndarray | None) -> np.ndarray:
        if self._held is None:
            return super()._optimize_acqf(acqf, best_params)
        choices = acqf.search_space.get_choices_of_discrete_params()
        value = choices[list(acqf.search_space.discrete_indices).index(self._column)][self._held]
        found = super()._optimize_acqf(_Held(acqf, self._column, value), best_params)
        found[self._column] = value
        return found


class _Held(BaseAcquisitionFunc):
    """An acquisition function with one parameter held."""

    def __init__(self, inner: BaseAcquisitionFunc, column: int, value: float) -> None:
        self._inner, self._column, self._value = inner, column, value
        super().__init__(inner.length_scales, inner.search_space)

    def eval_acqf(self, x: torch.Tensor) -> torch.Tensor:
        held = x.clone()
        held[..., self._column] = self._value
        return self._inner.eval_acqf(held)


def _logged(trial: FrozenTrial) -> FrozenTrial:
    logged = copy(trial)
    logged.values = [float(np.log(max(value, 1e-12))) for value in trial.values]
    return logged
