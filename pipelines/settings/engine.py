"""conf/engine: who runs the language model of the serve stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multimodal import FlowpruneError
from pipelines.settings.group import Group, PathText


class TransformersSettings(Group):
    """conf/engine/transformers.yaml."""

    name: Literal["transformers"]
    recordings_mib: int = Field(ge=0)


class VllmSettings(Group):
    """conf/engine/vllm.yaml."""

    name: Literal["vllm"]
    url: str | None
    python: PathText | None
    model: PathText | None
    arguments: list[str]
    start_seconds: float = Field(gt=0)

    @model_validator(mode="after")
    def _one_vllm(self) -> "VllmSettings":
        if (self.url is None) == (self.python is None):
            raise FlowpruneError(
                "engine=vllm needs one of engine.url, of a vLLM that runs, and engine.python, of a Python that has "
                "vLLM, which is then started."
            )
        return self


EngineSettings = Annotated[TransformersSettings | VllmSettings, Field(discriminator="name")]
