"""conf/search: how it is searched."""

from typing import Annotated, Literal

from pydantic import Field

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
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"]
