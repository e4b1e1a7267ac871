"""The search space: methods with their parameters, schedules and positions, all mapped onto the budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import optuna

from multimodal import PruningConfig, PruningStep
from multimodal.adaptive import Adaptive
from multimodal.config import Budget
from multimodal.merging import MergingRule
from multimodal.methods import Method
from multimodal.options import Measure, Sinks
from multimodal.ranges import SearchRange
from multimodal.runtime.watch import Normalization
from search.budget import Cost, check_reachable
from search.choice import MethodChoice, declared_ranges
from search.schedules import Schedules

BUDGET = "budget_number"  # the parameter that says which of several budgets a trial has
METHOD = "method"  # the parameter that says which of several methods
SHARE = 0.8  # guess for the shares of a schedule: most tokens for the first layers, few after the last step
STEEPEST = 50.0  # of a schedule's curve: it falls within a tenth of the depth

Shape = Literal["steps", "sigmoid"]


@dataclass(frozen=True)
class Space:
    """From a trial to a pruning config that is feasible and meets the budget.

    Schedules are suggested in the unit cube and mapped onto what the budget allows, so that no suggestion is wasted.
    With several methods, everything but budget and positions is a parameter of the method that a trial has, named
    after it.

    Args:
        choices: the methods.
        measure: of the budget.
        budgets: what may be spent, in that measure; each trial has one of them.
        cost: of a schedule, in that measure, over the calibration prompts.
        steps: pruning steps, but no more than a method's layers have room for where there are several methods; the
            first is before the language model, or, of a method that reads a layer before its step, inside it.
        layers: of the language model.
        positions: the choices.
        normalization: mean and standard deviation of the image processor.
        first_inner_layer: the first that a step inside the language model may come before.
        adapted: the cost where budgets adapt, whose strength is then searched; None: every image keeps the same share.
        reference: variety of an image that keeps its equal share then.
        shape: ``steps``: the layer and keep ratio of each is searched; ``sigmoid``: steps lie evenly over the layers,
            and the midpoint and steepness of a curve are searched.
    """

    choices: Sequence[MethodChoice]
    measure: Measure
    budgets: Sequence[float]
    cost: Cost
    steps: int
    layers: int
    positions: Sequence[str]
    normalization: Normalization
    first_inner_layer: int = 1
    shape: Shape = "steps"
    adapted: Callable[[Adaptive], Cost] | None = None
    reference: float = 1.0

    def __post_init__(self) -> None:
        for choice in self.choices:
            for budget in self.budgets:
                check_reachable(self.measure, budget, self.cost, self.schedules(choice).earliest)

    @property
    def conditional(self) -> bool:
        """Whether some parameters are there only where others have some value."""
        return len(self.choices) > 1 or len(self.choices[0].rules) > 1

    def schedules(self, choice: MethodChoice, adaptive: Adaptive | None = None) -> Schedules:
        """What schedules a method may have, where every image keeps the same share or budgets adapt."""
        cost = self.cost if adaptive is None or self.adapted is None else self.adapted(adaptive)
        inside = choice.kind.first_layer > 0
        first = max(self.first_inner_layer, choice.kind.first_layer)
        most = self.layers - first + (not inside)
        steps = min(self.steps, most) if len(self.choices) > 1 else self.steps
        return Schedules(cost, steps, self.layers, inside, first)

    @property
    def guesses(self) -> list[dict[str, Any]]:
        """Parameters of the trials that a search begins with: the method's guesses in every combination, each with each
        choice of positions and at each budget; steps in the middle of where they may lie."""
        if self.conditional or self.shape == "sigmoid":
            return []
        [choice] = self.choices
        schedules = self.schedules(choice)
        choices: dict[str, Sequence[Any]] = {"positions": self.positions} | choice.guesses
        # a step that reads the layer before it spends what comes before: it begins early
        choices |= {f"place_{step}": [schedules.places // 2 if step else 0] for step in schedules.placed}
        choices |= {f"share_{step}": [SHARE] for step in range(schedules.steps - 1)}
        if self.adapted is not None:
            choices["strength"] = [0.0]
        choices[BUDGET] = range(len(self.budgets))
        return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]

    def describe(self) -> dict[str, Any]:
        """What makes two searches comparable, as plain data."""
        described = self.choices[0].describe()
        if len(self.choices) > 1:
            described = {"method": "mixed", "among": [choice.describe() for choice in self.choices]}
        described |= {
            self.measure: self.budgets[0] if len(self.budgets) == 1 else list(self.budgets),
            "steps": self.steps,
            "places": self.schedules(self.choices[0]).places,
            "positions": list(self.positions),
        }
        if self.adapted is not None:
            described["adaptive"] = self.reference
        return described if self.shape == "steps" else described | {"schedule": self.shape}

    def suggest(self, trial: optuna.trial.BaseTrial) -> PruningConfig:
        """The pruning config of a trial."""
        budget, choice, prefix = self.budgets[0], self.choices[0], ""
        if len(self.budgets) > 1:  # by number, so that a sampler sees neighbours
            budget = self.budgets[trial.suggest_int(BUDGET, 0, len(self.budgets) - 1)]
        if len(self.choices) > 1:
            name = trial.suggest_categorical(METHOD, [choice.name for choice in self.choices])
            choice, prefix = next(choice for choice in self.choices if choice.name == name), f"{name}."
        method, merging, sinks = choice.suggest(trial, prefix)
        adaptive = self._suggested_adaptive(trial)
        schedules = self.schedules(choice, adaptive)
        schedule = self._suggested_schedule(trial, schedules, budget, prefix)
        positions = self.positions[0]
        if len(self.positions) > 1:
            positions = trial.suggest_categorical("positions", list(self.positions))
        found = self.config(budget, method, schedule, positions, merging, sinks)
        if adaptive is None:
            return found
        met = Budget(measure=self.measure, asked=budget, met=schedules.cost(schedule))
        return found.model_copy(update={"adaptive": adaptive, "budget": met})

    def _suggested_adaptive(self, trial: optuna.trial.BaseTrial) -> Adaptive | None:
        if self.adapted is None:
            return None
        bounds = declared_ranges(Adaptive)["strength"]
        assert isinstance(bounds, SearchRange)
        strength = trial.suggest_float("strength", bounds.low, bounds.high)
        return Adaptive(strength=strength, reference=self.reference)

    def _suggested_schedule(
        self, trial: optuna.trial.BaseTrial, schedules: Schedules, budget: float, prefix: str
    ) -> list[PruningStep]:
        if self.shape == "sigmoid":
            midpoint = trial.suggest_float(f"{prefix}midpoint", 0, 1)
            steepness = trial.suggest_float(f"{prefix}steepness", 0, STEEPEST)
            places = [number / len(schedules.placed) for number in range(len(schedules.placed))]
            return schedules.by_curve(budget, schedules.place_steps(places, budget), midpoint, steepness)
        # whole numbers: between two layers nothing changes, and a sampler need not find that out
        place = [trial.suggest_int(f"{prefix}place_{step}", 0, schedules.places - 1) for step in schedules.placed]
        share = [trial.suggest_float(f"{prefix}share_{step}", 0, 1) for step in range(schedules.steps - 1)]
        layers = schedules.place_steps([(each + 0.5) / schedules.places for each in place], budget)
        return schedules.by_shares(budget, layers, share)

    def config(
        self,
        budget: float,
        method: Method,
        schedule: Sequence[PruningStep],
        positions: Any,
        merging: MergingRule | None = None,
        sinks: Sinks = "kept",
    ) -> PruningConfig:
        """A config of this space: with the normalization of its model, and what it was asked to spend, and does."""
        return PruningConfig(
            method=method,
            schedule=schedule,
            positions=positions,
            merging=merging,
            sinks=sinks,
            image_mean=self.normalization[0],
            image_std=self.normalization[1],
            budget=Budget(measure=self.measure, asked=budget, met=self.cost(schedule)),
        )


def flat_parameters(config: PruningConfig, mixed: bool = False) -> dict[str, Any]:
    """A config as flat names and plain values, for tables and tracking; where methods are mixed, with the method."""
    flat = config.method.model_dump(exclude={"name"})
    if mixed:
        flat = {"method": config.method.name} | flat
    if config.merging is not None:
        flat |= {f"merging_{name}": value for name, value in config.merging.model_dump().items()}
    for number, step in enumerate(config.schedule):
        flat[f"layer_{number}"], flat[f"keep_ratio_{number}"] = step.layer, step.keep_ratio
    if config.budget is not None:
        flat["budget"] = config.budget.asked
    if config.sinks != "kept":
        flat["sinks"] = config.sinks
    if config.adaptive is not None:
        flat["strength"] = config.adaptive.strength
    return flat | {"positions": config.positions}
