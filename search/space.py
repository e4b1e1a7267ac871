"""The search space: a method's own bounded parameters, the schedule and the positions, all mapped onto the budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import optuna

from multimodal import FlowpruneError, PruningConfig, PruningStep
from multimodal.config import Budget, Measure
from multimodal.evidence import VisionRequest, joined
from multimodal.methods import SearchRange, make_method, method_named
from multimodal.runtime.watch import Normalization
from search.budget import LEAST, Cost, check_reachable, largest_ratio, ratio_range

BUDGET = "budget"  # the parameter that says which of several budgets a trial has
SHARE = 0.8  # guess for the shares of a schedule: most tokens for the first layers, few after the last step


@dataclass(frozen=True)
class Space:
    """From a trial to a pruning config that is feasible and meets the budget.

    Schedules are suggested in the unit cube and mapped onto what the budget allows, so that no suggestion is wasted.

    Args:
        method: name of the method.
        fixed: method parameters that are not searched.
        ranges: search ranges that replace the method's own, (low, high) by parameter.
        measure: of the budget.
        budgets: what may be spent, in that measure; each trial has one of them.
        cost: of a schedule, in that measure, over the calibration prompts.
        steps: pruning steps; the first is before the language model, or, of a method that reads a layer before its
            step, inside it.
        layers: of the language model.
        positions: the choices.
        normalization: mean and standard deviation of the image processor.
        first_inner_layer: the first that a step inside the language model may come before.
    """

    method: str
    fixed: Mapping[str, Any]
    ranges: Mapping[str, Sequence[float]]
    measure: Measure
    budgets: Sequence[float]
    cost: Cost
    steps: int
    layers: int
    positions: Sequence[str]
    normalization: Normalization
    first_inner_layer: int = 1

    def __post_init__(self) -> None:
        most = self.layers - self.first_inner_layer + (not self.inside)
        if not 1 <= self.steps <= most:
            raise FlowpruneError(
                f"search.steps is {self.steps}: choose one of 1 to {most}, as many as the model's layers allow."
            )
        for budget in self.budgets:
            check_reachable(self.measure, budget, self.cost, self.earliest)

    @property
    def inside(self) -> bool:
        """Whether the first step, too, lies inside the language model."""
        return method_named(self.method).first_layer > 0

    @property
    def placed(self) -> range:
        """Numbers of the steps whose layer is searched."""
        return range(0 if self.inside else 1, self.steps)

    @property
    def parameters(self) -> dict[str, SearchRange]:
        """The method parameters that are searched."""
        return searched_parameters(self.method, self.fixed, self.ranges)

    @property
    def places(self) -> int:
        """How many layers the first step inside the language model may come before."""
        return self.layers - self.first_inner_layer - len(self.placed) + 1

    @property
    def guesses(self) -> list[dict[str, Any]]:
        """Parameters of the trials that a search begins with: the method's guesses in every combination, each with each
        choice of positions and at each budget; steps in the middle of where they may lie."""
        choices: dict[str, Sequence[Any]] = {"positions": self.positions}
        choices |= {name: bounds.guesses for name, bounds in self.parameters.items() if bounds.guesses}
        # a step that reads the layer before it spends what comes before: it begins early
        choices |= {f"place_{step}": [self.places // 2 if step else 0] for step in self.placed}
        choices |= {f"share_{step}": [SHARE] for step in range(self.steps - 1)}
        choices[BUDGET] = range(len(self.budgets))
        return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]

    def describe(self) -> dict[str, Any]:
        """What makes two searches comparable, as plain data."""
        return {
            "method": self.method,
            "fixed": dict(self.fixed),
            "parameters": {name: [bounds.low, bounds.high] for name, bounds in self.parameters.items()},
            self.measure: self.budgets[0] if len(self.budgets) == 1 else list(self.budgets),
            "steps": self.steps,
            "places": self.places,
            "positions": list(self.positions),
        }

    def suggest(self, trial: optuna.trial.BaseTrial) -> PruningConfig:
        """The pruning config of a trial."""
        budget = self.budgets[0]
        if len(self.budgets) > 1:  # by number, so that a sampler sees neighbours
            budget = self.budgets[trial.suggest_int(BUDGET, 0, len(self.budgets) - 1)]
        values: dict[str, Any] = dict(self.fixed)
        for name, bounds in self.parameters.items():
            if method_named(self.method).model_fields[name].annotation is int:
                values[name] = trial.suggest_int(name, int(bounds.low), int(bounds.high))
            else:
                values[name] = trial.suggest_float(name, bounds.low, bounds.high, log=bounds.log)
        # whole numbers: between two layers nothing changes, and a sampler need not find that out
        place = [trial.suggest_int(f"place_{step}", 0, self.places - 1) for step in self.placed]
        share = [trial.suggest_float(f"share_{step}", 0, 1) for step in range(self.steps - 1)]
        positions = self.positions[0]
        if len(self.positions) > 1:
            positions = trial.suggest_categorical("positions", list(self.positions))
        layers = self.place_steps([(each + 0.5) / self.places for each in place], budget)
        return self.config(budget, values, layers, share, positions)

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

    @property
    def earliest(self) -> int:
        """The first layer that the first step may come before."""
        return self.first_inner_layer if self.inside else 0

    def latest(self, budget: float) -> int:
        """The last layer that the first step may come before: what is kept until then must not spend the budget."""
        layers = range(self.earliest, self.layers)
        return max(layer for layer in layers if self.cost(_steps([layer], [LEAST])) <= budget)

    def config(
        self, budget: float, values: Mapping[str, Any], layers: Sequence[int], shares: Sequence[float], positions: Any
    ) -> PruningConfig:
        """A config on budget.

        Args:
            budget: what it may spend.
            values: method parameters.
            layers: of the steps.
            shares: for each step but the last, where in its feasible range of keep ratios it lies, in [0, 1].
            positions: ``compact`` or ``original``.
        """
        ratios: list[float] = []
        for share in shares:
            low, high = self._range(budget, layers, ratios)
            ratios.append(min(low + share * (high - low), high))
        return self._config(budget, values, self.schedule(budget, layers, ratios), positions)

    def on_budget(
        self, budget: float, values: Mapping[str, Any], layers: Sequence[int], ratios: Sequence[float], positions: Any
    ) -> PruningConfig:
        """A config of chosen keep ratios, met as nearly as the budget allows, but for the last, which is solved.

        Args:
            budget: what it may spend.
            values: method parameters.
            layers: of the steps.
            ratios: keep ratios of the steps but the last.
            positions: ``compact`` or ``original``.
        """
        feasible: list[float] = []
        for ratio in ratios:
            low, high = self._range(budget, layers, feasible)
            feasible.append(min(max(ratio, low), high))
        return self._config(budget, values, self.schedule(budget, layers, feasible), positions)

    def schedule(self, budget: float, layers: Sequence[int], ratios: Sequence[float]) -> list[PruningStep]:
        """Steps whose last keep ratio spends the budget to the last whole token, and not more."""
        last = largest_ratio(lambda last: self.cost(_steps(layers, [*ratios, last])), budget)
        return _steps(layers, [*ratios, last])

    def _range(self, budget: float, layers: Sequence[int], ratios: Sequence[float]) -> tuple[float, float]:
        """Lowest and highest keep ratio of the step after ``ratios``."""
        later = len(layers) - len(ratios) - 1
        return ratio_range(lambda ratio, rest: self.cost(_steps(layers, [*ratios, ratio, *[rest] * later])), budget)

    def _config(
        self, budget: float, values: Mapping[str, Any], schedule: list[PruningStep], positions: Any
    ) -> PruningConfig:
        return PruningConfig(
            method=make_method({"name": self.method, **values}),
            schedule=schedule,
            positions=positions,
            image_mean=self.normalization[0],
            image_std=self.normalization[1],
            budget=Budget(measure=self.measure, asked=budget, met=self.cost(schedule)),
        )


def _steps(layers: Sequence[int], ratios: Sequence[float]) -> list[PruningStep]:
    return [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in zip(layers, ratios, strict=True)]


def flat_parameters(config: PruningConfig) -> dict[str, Any]:
    """A config as flat names and plain values, for tables and tracking."""
    flat = config.method.model_dump(exclude={"name"})
    for number, step in enumerate(config.schedule):
        flat[f"layer_{number}"], flat[f"keep_ratio_{number}"] = step.layer, step.keep_ratio
    if config.budget is not None:
        flat["budget"] = config.budget.asked
    return flat | {"positions": config.positions}


def vision_requests(
    method: str, fixed: Mapping[str, Any], ranges: Mapping[str, Sequence[float]]
) -> list[VisionRequest]:
    """All that a search over a method may ask of the vision tower, for every value of its parameters."""
    values: dict[str, Sequence[Any]] = {}
    for name, bounds in searched_parameters(method, fixed, ranges).items():
        whole = method_named(method).model_fields[name].annotation is int
        values[name] = range(int(bounds.low), int(bounds.high) + 1) if whole else (bounds.low, bounds.high)
    found: list[VisionRequest] = []
    for chosen in product(*values.values()):
        made = make_method({"name": method, **fixed, **dict(zip(values, chosen, strict=True))})
        found = joined([*found, *made.vision_requests])
    return found


def searched_parameters(
    method: str, fixed: Mapping[str, Any], ranges: Mapping[str, Sequence[float]]
) -> dict[str, SearchRange]:
    """The parameters of a method that are searched, and where.

    Raises:
        FlowpruneError: ``fixed`` or ``ranges`` names a parameter that the method lacks, or gives a value it refuses.
    """
    fields = method_named(method).model_fields
    for where, names in (("fixed", fixed), ("ranges", ranges)):
        for name in names:
            if name not in fields or name == "name":
                raise FlowpruneError(
                    f"method.{where}.{name}: {method} has no such parameter; it has "
                    f"{', '.join(sorted(set(fields) - {'name'}))}."
                )
    found = {}
    for name, field in fields.items():
        declared = next((item for item in field.metadata if isinstance(item, SearchRange)), None)
        if declared is None and name in ranges:
            raise FlowpruneError(f"method.ranges.{name}: {method} does not search it; set method.fixed.{name}.")
        if declared is not None and name not in fixed:
            low, high = ranges.get(name, (declared.low, declared.high))
            if low > high or (declared.log and low <= 0):
                above = "above 0 " if declared.log else ""
                raise FlowpruneError(f"method.ranges.{name} is [{low:g}, {high:g}]: give [low, high] {above}in order.")
            for bound in (low, high):
                make_method({"name": method, **fixed, name: bound})
            guesses = dict.fromkeys(min(max(guess, low), high) for guess in declared.guesses)
            found[name] = SearchRange(low, high, declared.log, tuple(guesses))
    return found
