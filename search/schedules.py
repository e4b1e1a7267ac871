"""Schedules on budget: where pruning steps may lie, and which keep ratios spend what is asked for, and not more."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multimodal import FlowpruneError, PruningStep
from search.budget import LEAST, Cost, largest_ratio, ratio_range


@dataclass(frozen=True)
class Schedules:
    """The schedules of one method on one model.

    Args:
        cost: of a schedule, in the budget's measure, over the calibration prompts.
        steps: how many pruning steps.
        layers: of the language model.
        inside: whether the first step, too, lies inside the language model, as of a method that reads a layer before
            its step; else it is before the language model.
        first_inner_layer: the first that a step inside the language model may come before.

    Raises:
        FlowpruneError: more steps than layers.
    """

    cost: Cost
    steps: int
    layers: int
    inside: bool = False
    first_inner_layer: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.most:
            raise FlowpruneError(
                f"search.steps is {self.steps}: choose one of 1 to {self.most}, as many as the model's layers allow."
            )

    @property
    def most(self) -> int:
        """How many steps the layers have room for."""
        return self.layers - self.first_inner_layer + (not self.inside)

    @property
    def earliest(self) -> int:
        """The first layer that the first step may come before."""
        return self.first_inner_layer if self.inside else 0

    def latest(self, budget: float) -> int:
        """The last layer that the first step may come before: what is kept until then must not spend the budget."""
        layers = range(self.earliest, self.layers)
        return max(layer for layer in layers if self.cost(steps_of([layer], [LEAST])) <= budget)

    @property
    def placed(self) -> range:
        """Numbers of the steps whose layer is searched."""
        return range(0 if self.inside else 1, self.steps)

    @property
    def places(self) -> int:
        """How many layers the first step inside the language model may come before."""
        return self.layers - self.first_inner_layer - len(self.placed) + 1

    def place_steps(self, places: Sequence[float], budget: float) -> list[int]:
        """Layers of the steps, strictly increasing, from numbers in [0, 1]: from 0, or the first within the budget."""
        layers = [] if self.inside else [0]
        for number, place in enumerate(places):
            first = max(layers[-1] + 1 if layers else 0, self.first_inner_layer)
            last = self.layers - (len(places) - number)
            if not layers:
                last = min(last, self.latest(budget))
            layers.append(first + min(int(place * (last - first + 1)), last - first))
        return layers

    def at_depths(self, depths: Sequence[float], budget: float) -> list[int]:
        """Layers of steps at shares of the model's depth, as papers give them: the nearest that are allowed."""
        layers: list[int] = []
        for depth in depths:
            first = max(layers[-1] + 1, self.first_inner_layer) if layers else self.earliest
            wanted = max(round(depth * self.layers), first)
            layers.append(wanted if layers else min(wanted, self.latest(budget)))
        return layers

    def by_shares(self, budget: float, layers: Sequence[int], shares: Sequence[float]) -> list[PruningStep]:
        """A schedule on budget.

        Args:
            budget: what it may spend.
            layers: of the steps.
            shares: for each step but the last, where in its feasible range of keep ratios it lies, in [0, 1].
        """
        ratios: list[float] = []
        for share in shares:
            low, high = self._range(budget, layers, ratios)
            ratios.append(min(low + share * (high - low), high))
        return self.solved(budget, layers, ratios)

    def by_ratios(self, budget: float, layers: Sequence[int], ratios: Sequence[float]) -> list[PruningStep]:
        """A schedule of chosen keep ratios, met as nearly as the budget allows, but for the last, which is solved."""
        feasible: list[float] = []
        for ratio in ratios:
            low, high = self._range(budget, layers, feasible)
            feasible.append(min(max(ratio, low), high))
        return self.solved(budget, layers, feasible)

    def by_curve(self, budget: float, layers: Sequence[int], midpoint: float, steepness: float) -> list[PruningStep]:
        """A schedule whose retention falls along a sigmoid over the layers (P-Sigmoid, arXiv 2412.00556).

        The tokens left from layer l on are a · σ(−steepness · (l / layers − midpoint)) of all, at most all; a is the
        greatest whose steps do not exceed the budget.

        Args:
            budget: what it may spend.
            layers: of the steps.
            midpoint: where the curve has fallen to half, as a share of the depth.
            steepness: of its fall there, 0: none.
        """
        curve = [1 / (1 + math.exp(steepness * (layer / self.layers - midpoint))) for layer in layers]

        def ratios(scale: float) -> list[float]:
            left = [min(1.0, scale * height / curve[0]) for height in curve]
            return [max(own / before, LEAST) for before, own in zip([1.0, *left], left, strict=False)]

        def scale(share: float) -> float:
            """From one that leaves a token to one that leaves all, over orders of magnitude."""
            return LEAST * (curve[0] / curve[-1] / LEAST) ** share

        share = largest_ratio(lambda share: self.cost(steps_of(layers, ratios(scale(share)))), budget)
        return self.solved(budget, layers, ratios(scale(share))[:-1])

    def solved(self, budget: float, layers: Sequence[int], ratios: Sequence[float]) -> list[PruningStep]:
        """Steps whose last keep ratio spends the budget to the last whole token, and not more."""
        last = largest_ratio(lambda last: self.cost(steps_of(layers, [*ratios, last])), budget)
        return steps_of(layers, [*ratios, last])

    def _range(self, budget: float, layers: Sequence[int], ratios: Sequence[float]) -> tuple[float, float]:
        """Lowest and highest keep ratio of the step after ``ratios``."""
        later = len(layers) - len(ratios) - 1
        return ratio_range(lambda ratio, rest: self.cost(steps_of(layers, [*ratios, ratio, *[rest] * later])), budget)


def steps_of(layers: Sequence[int], ratios: Sequence[float]) -> list[PruningStep]:
    """Pruning steps from their layers and keep ratios."""
    return [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in zip(layers, ratios, strict=True)]
