"""What of one method a search may change: its own parameters, and how what it prunes merges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, cast

import optuna
from pydantic import BaseModel

from multimodal import FlowpruneError
from multimodal.evidence import Statistic, TowerScore, VisionRequest, joined
from multimodal.merging import MergingRule, make_merging, merging_named
from multimodal.methods import Method, SearchRange, make_method, method_named
from multimodal.options import Sinks
from multimodal.ranges import SearchChoice

OWN = "own"  # the method's own merging rule
WEIGHT = "weight"  # the parameter of every merging rule that is 0 where it is not searched

Ranges = Mapping[str, Sequence[float]]
Searched = Mapping[str, SearchRange | SearchChoice]


@dataclass(frozen=True)
class MethodChoice:
    """A method that a search may choose.

    Args:
        name: of the method.
        fixed: its parameters that are not searched.
        ranges: search ranges that replace its own, (low, high) by parameter.
        mergings: merging rules to choose among; ``own`` is the method's.
        sinks: what may become of attention sinks (:class:`multimodal.PruningConfig`).
        weighted: whether merging rules may give merged tokens a weight.

    Raises:
        FlowpruneError: there is no such method, parameter or rule, or none of the rules fits the method.
    """

    name: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    mergings: Sequence[str] = (OWN,)
    sinks: Sequence[Sinks] = ("kept",)
    weighted: bool = True

    def __post_init__(self) -> None:
        searched_parameters(self.name, self.fixed, self.ranges)  # refuses what the method lacks
        if not self.rules:
            raise FlowpruneError(
                f"search.merging {list(self.mergings)} ranks tokens by a score, and {self.name} has none: "
                "add nearest or clusters."
            )

    @property
    def kind(self) -> type[Method]:
        """The method's class."""
        return method_named(self.name)

    @property
    def rules(self) -> list[str]:
        """The merging rules that fit the method."""
        scores = self.kind.score is not Method.score
        return [rule for rule in self.mergings if rule == OWN or not merging_named(rule).needs_score or scores]

    @property
    def parameters(self) -> Searched:
        """The method parameters that are searched."""
        return searched_parameters(self.name, self.fixed, self.ranges)

    def merging_parameters(self, rule: str) -> Searched:
        """The parameters of a merging rule that are searched."""
        declared = {} if rule == OWN else declared_ranges(merging_named(rule))
        return {name: bounds for name, bounds in declared.items() if self.weighted or name != WEIGHT}

    @property
    def guesses(self) -> dict[str, Sequence[Any]]:
        """Values worth a first try, by parameter."""
        guesses: dict[str, Sequence[Any]] = {
            name: bounds.guesses
            for name, bounds in self.parameters.items()
            if isinstance(bounds, SearchRange) and bounds.guesses
        }
        return guesses

    def describe(self) -> dict[str, Any]:
        """What makes two searches comparable, as plain data."""
        described: dict[str, Any] = {
            "method": self.name,
            "fixed": dict(self.fixed),
            "parameters": {name: _plain(bounds) for name, bounds in self.parameters.items()},
        }
        if list(self.sinks) != ["kept"]:
            described["sinks"] = list(self.sinks)
        if list(self.mergings) == [OWN]:
            return described
        return described | {"merging": list(self.mergings)} | ({} if self.weighted else {"merging_weight": 0})

    def suggest(self, trial: optuna.trial.BaseTrial, prefix: str = "") -> tuple[Method, MergingRule | None, Sinks]:
        """The method of a trial, its merging rule and what becomes of sinks.

        Args:
            trial: which.
            prefix: of the names of its parameters, where a search has several methods.
        """
        values = _suggested(trial, self.kind, self.parameters, prefix)
        method = make_method({"name": self.name, **self.fixed, **values})
        sinks = self.sinks[0]
        if len(self.sinks) > 1 and any(isinstance(request, Statistic) for request in method.evidence):
            sinks = cast(Sinks, trial.suggest_categorical(f"{prefix}sinks", list(self.sinks)))
        rule = self.rules[0]
        if len(self.rules) > 1:
            rule = trial.suggest_categorical(f"{prefix}merging", self.rules)
        if rule == OWN:
            return method, None, sinks
        own = _suggested(trial, merging_named(rule), self.merging_parameters(rule), f"{prefix}{rule}.")
        return method, make_merging({"rule": rule, **own}), sinks

    @property
    def prunes_tower(self) -> bool:
        """Whether it prunes inside the vision tower, which then runs in every trial."""
        return make_method({"name": self.name, **self.fixed}).tower is not None

    @property
    def vision_requests(self) -> list[VisionRequest]:
        """All that a search over it may ask of the vision tower as it is, for every value of its parameters."""
        values: dict[str, Sequence[Any]] = {}
        for name, bounds in self.parameters.items():
            if isinstance(bounds, SearchChoice):
                values[name] = bounds.values
            elif self.kind.model_fields[name].annotation is int:
                values[name] = range(int(bounds.low), int(bounds.high) + 1)
            else:
                values[name] = (bounds.low, bounds.high)
        found: list[VisionRequest] = []
        for chosen in product(*values.values()):
            made = make_method({"name": self.name, **self.fixed, **dict(zip(values, chosen, strict=True))})
            for request in made.vision_requests:
                if isinstance(request, Statistic):
                    found = joined([*found, *(replace(request, sinks=sinks) for sinks in self.sinks)])
                elif not isinstance(request, TowerScore):
                    found = joined([*found, request])
        return found


def _suggested(
    trial: optuna.trial.BaseTrial, kind: type[BaseModel], parameters: Searched, prefix: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, bounds in parameters.items():
        if isinstance(bounds, SearchChoice):
            values[name] = trial.suggest_categorical(prefix + name, list(bounds.values))
        elif kind.model_fields[name].annotation is int:
            values[name] = trial.suggest_int(prefix + name, int(bounds.low), int(bounds.high))
        else:
            values[name] = trial.suggest_float(prefix + name, bounds.low, bounds.high, log=bounds.log)
    return values


def _plain(bounds: SearchRange | SearchChoice) -> list[Any]:
    return list(bounds.values) if isinstance(bounds, SearchChoice) else [bounds.low, bounds.high]


def declared_ranges(kind: type[BaseModel]) -> dict[str, SearchRange | SearchChoice]:
    """What the fields of a pydantic model say of where to search."""
    found: dict[str, SearchRange | SearchChoice] = {}
    for name, info in kind.model_fields.items():
        for item in info.metadata:
            if isinstance(item, SearchRange | SearchChoice):
                found[name] = item
    return found


def searched_parameters(method: str, fixed: Mapping[str, Any], ranges: Ranges) -> dict[str, SearchRange | SearchChoice]:
    """The parameters of a method that are searched, and where.

    Raises:
        FlowpruneError: ``fixed`` or ``ranges`` names a parameter that the method lacks, or gives a value it refuses.
    """
    fields, declared = method_named(method).model_fields, declared_ranges(method_named(method))
    for where, names in (("fixed", fixed), ("ranges", ranges)):
        for name in names:
            if name not in fields or name == "name":
                raise FlowpruneError(
                    f"method.{where}.{name}: {method} has no such parameter; it has "
                    f"{', '.join(sorted(set(fields) - {'name'}))}."
                )
    for name in ranges:
        if not isinstance(declared.get(name), SearchRange):
            raise FlowpruneError(f"method.ranges.{name}: {method} does not search it; set method.fixed.{name}.")
    return {
        name: _narrowed(method, name, bounds, fixed, ranges) if isinstance(bounds, SearchRange) else bounds
        for name, bounds in declared.items()
        if name not in fixed
    }


def _narrowed(method: str, name: str, bounds: SearchRange, fixed: Mapping[str, Any], ranges: Ranges) -> SearchRange:
    low, high = ranges.get(name, (bounds.low, bounds.high))
    if low > high or (bounds.log and low <= 0):
        above = "above 0 " if bounds.log else ""
        raise FlowpruneError(f"method.ranges.{name} is [{low:g}, {high:g}]: give [low, high] {above}in order.")
    for bound in (low, high):
        make_method({"name": method, **fixed, name: bound})
    return SearchRange(low, high, bounds.log, tuple(dict.fromkeys(min(max(g, low), high) for g in bounds.guesses)))
