"""conf/model: which vision-language model."""

from typing import Any, Literal

from pipelines.settings.group import Group, PathText


class ModelSettings(Group):
    """conf/model."""

    name: str
    path: PathText
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    device_map: str | None = None
    quantization: Literal["bnb-4bit", "bnb-8bit"] | None = None
    adapter: PathText | None = None
    attention: str
    weights: Literal["pretrained", "random"]
    trust_remote_code: bool
    architecture: dict[str, Any] | None
