"""conf/search: how it is searched."""

from typing import Any, Literal

from pydantic import Field, field_validator

from multimodal import FlowpruneError
from multimodal.options import Positions, Sinks
from pipelines.settings.group import Group

Shape = Literal["steps", "sigmoid"]


class SearchSettings(Group):
    """conf/search."""

    name: str
    pareto: bool
    trials: int = Field(ge=1)
    steps: int = Field(ge=1)
    positions: list[Positions] = Field(min_length=1)
    merging: list[str] = Field(min_length=1)
    sinks: list[Sinks] = Field(min_length=1)
    adaptive: bool
    schedule: Shape
    sampler: Literal["auto", "gp", "tpe", "random"]
    startup: int = Field(ge=1)
    early_stopping: bool
    objective: Literal["discrepancy", "kl"]
    batch_size: int | Literal["auto"]

    @field_validator("batch_size", mode="before")
    @classmethod
    def _some_samples(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise FlowpruneError(f"search.batch_size is {value!r}: give a number of samples, or auto.")
        return value
