"""conf/data: which images and questions, how they are asked, and what an answer is worth."""

from typing import Any, Literal

from pydantic import Field, field_validator

from multimodal import FlowpruneError
from pipelines.settings.group import Group, PathText

ASKED_OTHERWISE = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "load_audio_from_video",
    "processor_kwargs",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
}  # arguments of apply_chat_template that are none of the template's


class Columns(Group):
    """Names of a data set's columns, or of the keys of a folder's rows."""

    image: str = "image"
    video: str = "video"
    question: str = "question"
    answer: str = "answer"
    kind: str = "kind"


class DataSettings(Group):
    """conf/data."""

    source: Literal["scenes", "photos", "folder", "datasets"]
    path: PathText | None
    calibration: int = Field(ge=1)
    heldout: int = Field(ge=1)
    split: str
    subset: str | None
    data_files: str | list[str] | None
    columns: Columns
    score: Literal["exact", "vqa", "anls", "relaxed", "choice"]
    system: str | None
    prefix: str | None
    suffix: str | None
    template: dict[str, Any]

    @field_validator("template")
    @classmethod
    def _of_the_template_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in ASKED_OTHERWISE:
                raise FlowpruneError(f"data.template.{name} is no option of a chat template: leave it out.")
        return value
