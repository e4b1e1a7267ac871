"""The composed configuration, checked once at the door: a wrong value is one sentence before any work."""

import re
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal import FlowpruneError
from multimodal.config import Positions
from multimodal.errors import one_sentence

Stage = Literal["calibrate", "search", "validate", "export", "maps", "generate", "benchmark"]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Group):
    """conf/model."""

    name: str
    path: str
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    attention: str
    weights: Literal["pretrained", "random"]
    trust_remote_code: bool
    architecture: dict[str, Any] | None


class Columns(_Group):
    """Names of a data set's columns."""

    image: str
    question: str
    answer: str
    kind: str


class DataSettings(_Group):
    """conf/data."""

    source: Literal["scenes", "folder", "datasets"]
    path: str | None
    calibration: int = Field(ge=1)
    heldout: int = Field(ge=1)
    split: str
    subset: str | None
    data_files: str | list[str] | None
    columns: Columns


class Untuned(_Group):
    """What a method's paper uses without a search."""

    parameters: dict[str, Any]
    places: list[float]
    ratios: list[float]


class MethodSettings(_Group):
    """conf/method."""

    name: str
    fixed: dict[str, Any]
    ranges: dict[str, tuple[float, float]]
    untuned: Untuned


class BudgetSettings(_Group):
    """conf/budget."""

    retention: float = Field(gt=0, le=1)


class SearchSettings(_Group):
    """conf/search."""

    trials: int = Field(ge=1)
    steps: int = Field(ge=1)
    positions: list[Positions] = Field(min_length=1)
    sampler: Literal["gp", "tpe", "random"]
    startup: int = Field(ge=1)
    early_stopping: bool
    batch_size: int = Field(ge=1)


class StorageSettings(_Group):
    """conf/storage."""

    path: str


class TrackingSettings(_Group):
    """conf/tracking."""

    uri: str
    artifacts: str | None
    experiment: str


class GenerateSettings(_Group):
    """The generate stage."""

    image: str | None
    question: str | None
    config: str | None
    max_new_tokens: int = Field(ge=1)


class MapsSettings(_Group):
    """The maps stage."""

    samples: int = Field(ge=1)
    config: str | None


class BenchmarkSettings(_Group):
    """The benchmark stage."""

    config: str | None
    repeats: int = Field(ge=1)
    samples: int = Field(ge=1)
    text_tokens: int = Field(ge=1)


class Settings(_Group):
    """conf/config.yaml, composed."""

    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    budget: BudgetSettings
    search: SearchSettings
    storage: StorageSettings
    tracking: TrackingSettings
    stages: list[Stage] = Field(min_length=1)
    study: str = Field(min_length=1)
    output: str
    cache: str
    seed: int = Field(ge=0)
    generate: GenerateSettings
    maps: MapsSettings
    benchmark: BenchmarkSettings


def flat_name(path: str) -> str:
    """A path or hub id as one word, for names of studies and folders."""
    return re.sub(r"[^\w.-]+", "_", str(path)).strip("_")


def register_resolvers() -> None:
    """Make ``${flat_name:…}`` known to the configuration files."""
    OmegaConf.register_new_resolver("flat_name", flat_name, replace=True)


def check_settings(cfg: DictConfig) -> Settings:
    """Resolve and check a composed configuration.

    Raises:
        FlowpruneError: the first wrong value, in one sentence.
    """
    try:
        return Settings.model_validate(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise FlowpruneError(f"{str(error).splitlines()[0]}: give it on the command line as key=value.") from error
    except ValidationError as error:
        raise FlowpruneError(one_sentence(error)) from error
