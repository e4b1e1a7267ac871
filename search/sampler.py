"""Which trial comes next: Optuna's samplers, with the Gaussian process fitted to what a search needs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from statistics import median
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

NEARBY = 0.2  # of a parameter's range, to either side


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
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
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
    """Optuna's GPSampler on the discrepancy's logarithm, near the best trial, a budget at a time.

    Discrepancies span orders of magnitude, and the least ones matter. They repeat exactly, but jump with every token
    that is kept or not: a fitted noise keeps the Gaussian process from bending to each jump. The worse half of the
    trials count as bad as their median, so that it bends to where the good ones are.

    The next trial has any whole numbers and categories, but its other parameters are ``NEARBY`` those of the best one
    (a trust region, as in TuRBO, Eriksson et al. 2019): a few dozen trials do not explore ten dimensions.

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
        budgets = [trial.params.get(BUDGET) for trial in completed_trials]
        best: dict[Any, int] = {}  # budget -> where its best trial is
        for number, budget in enumerate(budgets):
            best[budget] = min(best.get(budget, number), number, key=logarithms.__getitem__)
        self._held: tuple[int, int] | None = None  # which parameter the budget is, and which choice has its turn
        turn = None
        if BUDGET in search_space:
            tries = Counter([*budgets, *(trial.params.get(BUDGET) for trial in running_trials)])
            turn = min(range(cast(IntDistribution, search_space[BUDGET]).high + 1), key=lambda choice: tries[choice])
            self._held = list(search_space).index(BUDGET), turn
        self._best = completed_trials[best[turn]] if turn in best else None
        worse = [logarithm - logarithms[best[budget]] for logarithm, budget in zip(logarithms, budgets, strict=True)]
        most = median(worse)
        valued = [_valued(trial, min(each, most)) for trial, each in zip(completed_trials, worse, strict=True)]
        one = cast(optuna.Study, SimpleNamespace(directions=[StudyDirection.MINIMIZE]))
        return super()._sample_relative_impl(one, valued, running_trials, search_space)

    def _optimize_acqf(self, acqf: BaseAcquisitionFunc, best_params: np.ndarray | None) -> np.ndarray:
        space = acqf.search_space
        low, width, start = np.zeros(space.dim), np.ones(space.dim), None
        if self._best is not None:
            start = space.get_normalized_params([self._best])
            near = space.continuous_indices
            low[near] = np.maximum(start[0, near] - NEARBY, 0)
            width[near] = np.minimum(start[0, near] + NEARBY, 1) - low[near]
            start = (start - low) / width
        if self._held is not None:
            column, choice = self._held
            choices = space.get_choices_of_discrete_params()[list(space.discrete_indices).index(column)]
            low[column], width[column] = choices[choice], 0
        return low + width * super()._optimize_acqf(_Boxed(acqf, low, width), start)


class _Boxed(BaseAcquisitionFunc):
    """An acquisition function over a box of the space, which it sees as the whole; no width holds a parameter."""

    def __init__(self, inner: BaseAcquisitionFunc, low: np.ndarray, width: np.ndarray) -> None:
        self._inner, self._low, self._width = inner, torch.from_numpy(low), torch.from_numpy(width)
        super().__init__(inner.length_scales / np.where(width > 0, width, 1), inner.search_space)

    def eval_acqf(self, x: torch.Tensor) -> torch.Tensor:
        return self._inner.eval_acqf(self._low + x * self._width)


def _valued(trial: FrozenTrial, value: float) -> FrozenTrial:
    valued = copy(trial)
    valued.values = [value]
    return valued
