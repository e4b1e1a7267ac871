"""What all groups of settings have in common."""

from pydantic import BaseModel, ConfigDict


class Group(BaseModel):
    """A group of settings: nothing but its keys, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
