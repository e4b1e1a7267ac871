"""Which trial comes next: Optuna's samplers, with the Gaussian process fitted to what a search needs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import torch
from optuna._gp.acqf import BaseAcquisitionFunc
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from multimodal import FlowpruneError
from search.space import BUDGET


def make_sampler(
    name: str, seed: int, startup: int, guesses: Sequence[Mapping[str, Any]] = ()
) -> optuna.samplers.BaseSampler:
    """The sampler of that name: ``gp``, ``tpe`` or ``random``.

    Args:
        name: of the sampler.
        seed: the same gives the same trials.
        startup: trials before the sampler models anything; no fewer than there are guesses.
        guesses: parameters of a study's first trials, for ``gp``.

    Raises:
        FlowpruneError: there is none of that name.
    """
    if name == "gp":
        first = GuessesFirst(guesses, seed)
        return LogGPSampler(seed=seed, n_startup_trials=max(startup, len(guesses)), independent_sampler=first)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise FlowpruneError(f"search.sampler is {name!r}: choose gp, tpe or random.")


class GuessesFirst(optuna.samplers.RandomSampler):
    """Random parameters, but for those that are guessed for a study's first trials, whichever worker runs them."""

    def __init__(self, guesses: Sequence[Mapping[str, Any]], seed: int) -> None:
        super().__init__(seed)
        self._guesses = guesses

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        guess = self._guesses[trial.number] if trial.number < len(self._guesses) else {}
        if param_name in guess:
            return guess[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)


class LogGPSampler(optuna.samplers.GPSampler):
    """Optuna's GPSampler on the discrepancy's logarithm, a budget at a time.

    Discrepancies span orders of magnitude, and the least ones matter. They repeat exactly, but jump with every token
    that is kept or not: a fitted noise keeps the Gaussian process from bending to each jump.

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
            return super()._optimize_acqf(acqf, best_params)
        column, choice = self._held
        choices = acqf.search_space.get_choices_of_discrete_params()
        value = choices[list(acqf.search_space.discrete_indices).index(column)][choice]
        found = super()._optimize_acqf(_Held(acqf, column, value), best_params)
        found[column] = value
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


def _valued(trial: FrozenTrial, value: float) -> FrozenTrial:
    valued = copy(trial)
    valued.values = [value]
    return valued
