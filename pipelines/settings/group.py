"""What all groups of settings have in common."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Group(BaseModel):
    """A group of settings: nothing but its keys, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _at_home(value: str) -> str:
    return str(Path(value).expanduser()) if value.startswith("~") else value


PathText = Annotated[str, AfterValidator(_at_home)]  # a path, or a hub id; ~ is the home folder
