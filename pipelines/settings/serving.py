"""conf/serving: which engine is to serve the config that a search finds, and so what the search may choose."""

from typing import Literal

from pydantic import Field

from multimodal.options import Positions
from pipelines.settings.group import Group, PathText

Engine = Literal["vllm"]


class ServingSettings(Group):
    """conf/serving."""

    engine: Engine | None
    positions: list[Positions] = Field(min_length=1)
    suffix: str
    unrestricted: PathText | None


NO_ENGINE = ServingSettings(engine=None, positions=["original", "compact"], suffix="", unrestricted=None)
