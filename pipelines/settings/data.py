"""conf/data: which images and questions."""

from typing import Literal

from pydantic import Field

from pipelines.settings.group import Group


class Columns(Group):
    """Names of a data set's columns."""

    image: str
    question: str
    answer: str
    kind: str


class DataSettings(Group):
    """conf/data."""

    source: Literal["scenes", "photos", "folder", "datasets"]
    path: str | None
    calibration: int = Field(ge=1)
    heldout: int = Field(ge=1)
    split: str
    subset: str | None
    data_files: str | list[str] | None
    columns: Columns
