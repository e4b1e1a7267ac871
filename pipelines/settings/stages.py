"""The groups of conf/config.yaml that one stage reads."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from pipelines.settings.group import Group, PathText

Stage = Literal[
    "calibrate",
    "search",
    "validate",
    "export",
    "maps",
    "generate",
    "benchmark",
    "compare",
    "watch",
    "cancel",
    "sync",
    "proxy",
    "serve",
]


Target = Literal["vllm", "openvino", "tensorrt-edge", "vllm-video", "pixels"]


class GenerateSettings(Group):
    """The generate stage."""

    image: PathText | None
    question: str | None
    config: PathText | None
    max_new_tokens: int = Field(ge=1)


class MapsSettings(Group):
    """The maps stage."""

    samples: int = Field(ge=1)
    config: PathText | None


class BenchmarkSettings(Group):
    """The benchmark stage."""

    config: PathText | None
    repeats: int = Field(ge=1)
    samples: int = Field(ge=1)
    batches: list[PositiveInt] = Field(min_length=1)
    text_tokens: int = Field(ge=2)
    new_tokens: int = Field(ge=1)
    minutes: float | None = Field(gt=0)
    sweep: bool
    sizes: list[str] = Field(min_length=1)
    retentions: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)

    @field_validator("sizes", mode="before")
    @classmethod
    def _as_typed(cls, value: Any) -> Any:
        return [str(each) for each in value] if isinstance(value, list) else value


class CompareSettings(Group):
    """The compare stage."""

    name: str = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    budgets: list[float] | None
    tuned: bool | list[str]
    timed: int = Field(ge=1)
    repeats: int = Field(ge=1)
    bootstrap: int = Field(ge=100)
    pictures: int = Field(ge=0)

    @field_validator("methods", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def tunes(self, method: str) -> bool:
        """Whether a method is searched, too."""
        return method in self.tuned if isinstance(self.tuned, list) else self.tuned

    @field_validator("budgets", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, int | float) else value


class ProxySettings(Group):
    """The proxy stage."""

    host: str
    port: int


class ServeSettings(Group):
    """The serve stage."""

    configs: dict[str, PathText]
    default: str | None
    host: str
    port: int = Field(ge=0, le=65535)
    queue: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    timeout: float = Field(gt=0)
    max_tokens: int = Field(ge=1)
    request_mib: float = Field(gt=0)
    image_mib: float = Field(gt=0)
    image_megapixels: float = Field(gt=0)
    image_hosts: list[str]
    image_folder: PathText | None
