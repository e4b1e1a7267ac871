"""conf/method: which pruning method is searched, and in which ranges."""

from typing import Any

from pydantic import Field, field_validator

from multimodal import FlowpruneError
from pipelines.settings.group import Group


class Untuned(Group):
    """What a method's paper uses without a search."""

    parameters: dict[str, Any]
    places: list[float]
    ratios: list[float]


class MethodSettings(Group):
    """conf/method."""

    name: str
    among: list[str] = Field(default=[])
    fixed: dict[str, Any]
    ranges: dict[str, Any]
    untuned: Untuned | None

    @field_validator("ranges")
    @classmethod
    def _each_is_a_range(cls, value: dict[str, Any]) -> dict[str, Any]:
        """(low, high) by parameter; of ``method=mixed``, by method and parameter."""
        for name, own in value.items():
            named = {f"{name}.{each}": pair for each, pair in own.items()} if isinstance(own, dict) else {name: own}
            for full, pair in named.items():
                numbers = isinstance(pair, list | tuple) and [isinstance(each, int | float) for each in pair]
                if numbers != [True, True]:
                    raise FlowpruneError(f"method.ranges.{full} is {pair!r}: give [low, high].")
        return value
