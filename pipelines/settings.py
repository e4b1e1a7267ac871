"""The composed configuration, checked once at the door: a wrong value is one sentence before any work."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from multimodal import FlowpruneError
from multimodal.config import Measure, Positions
from multimodal.errors import one_sentence
from multimodal.sinks import Sinks

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
]
Shape = Literal["steps", "sigmoid"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


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

    source: Literal["scenes", "photos", "folder", "datasets"]
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
    among: list[str] = Field(default=[])
    fixed: dict[str, Any]
    ranges: dict[str, Any]
    untuned: Untuned | None

    @field_validator("ranges")
    @classmethod
    def _each_is_a_range(cls, value: dict[str, Any]) -> dict[str, Any]:
        """(low, high) by parameter; of ``method=mixed``, by method and parameter."""
        for name, own in value.items():
            named = {f"{name}.{each}": pair for each, pair in own.items()} if isinstance(own, dict) else {name: own}
            for full, pair in named.items():
                numbers = isinstance(pair, list | tuple) and [isinstance(each, int | float) for each in pair]
                if numbers != [True, True]:
                    raise FlowpruneError(f"method.ranges.{full} is {pair!r}: give [low, high].")
        return value


class BudgetSettings(_Group):
    """conf/budget: one measure, with one budget in it or several for a search of a Pareto front."""

    name: str
    retention: list[float] | None = None
    flops: list[float] | None = None
    kv: list[float] | None = None
    latency_ms: list[float] | None = None

    @field_validator("retention", "flops", "kv", "latency_ms", mode="before")
    @classmethod
    def _each_is_a_budget(cls, value: Any, info: ValidationInfo) -> list[float] | None:
        if value is None:
            return None
        share = info.field_name != "latency_ms"
        budgets = value if isinstance(value, list) else [value]
        for each in budgets:
            number = isinstance(each, int | float) and not isinstance(each, bool)
            if not number or not 0 < each <= (1 if share else float("inf")):
                wanted = "a share of the unpruned model's, in (0, 1]" if share else "milliseconds, above 0"
                raise FlowpruneError(f"budget.{info.field_name} is {each!r}: give {wanted}.")
        return sorted(set(budgets))

    @model_validator(mode="after")
    def _one_measure(self) -> "BudgetSettings":
        if len(self._set) != 1:
            raise FlowpruneError(
                f"budget has {' and '.join(self._set) or 'no measure'}: choose exactly one of {', '.join(MEASURES)}, "
                "for example budget.flops=0.2."
            )
        return self

    @property
    def _set(self) -> list[Measure]:
        return [measure for measure in MEASURES if getattr(self, measure)]

    @property
    def measure(self) -> Measure:
        """What is counted."""
        return self._set[0]

    @property
    def budgets(self) -> list[float]:
        """What is asked for, in that measure, each once, the least first."""
        return list(getattr(self, self.measure))


class SearchSettings(_Group):
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
    batch_size: int = Field(ge=1)


class FileStorage(_Group):
    """conf/storage/sqlite.yaml and journal.yaml."""

    kind: Literal["sqlite", "journal"]
    path: str


class PostgresStorage(_Group):
    """conf/storage/postgres.yaml; the password is no setting."""

    kind: Literal["postgres"]
    host: str
    port: int
    database: str
    user: str | None


class GrpcStorage(_Group):
    """conf/storage/grpc.yaml."""

    kind: Literal["grpc"]
    host: str
    port: int


StorageSettings = Annotated[FileStorage | PostgresStorage | GrpcStorage, Field(discriminator="kind")]


class NoCluster(_Group):
    """conf/cluster/none.yaml."""

    kind: Literal["none"]


class LocalCluster(_Group):
    """conf/cluster/local.yaml."""

    kind: Literal["local"]
    workers: int = Field(ge=1)


class SlurmCluster(_Group):
    """conf/cluster/slurm.yaml."""

    kind: Literal["slurm"]
    workers: int = Field(ge=1)
    partition: str | None
    account: str | None
    qos: str | None
    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory: str | None
    hours: float = Field(gt=0)
    options: dict[str, Any]


class RayCluster(_Group):
    """conf/cluster/ray.yaml."""

    kind: Literal["ray"]
    address: str
    workers: int = Field(ge=1)
    gpus: float = Field(ge=0)
    cpus: int = Field(ge=1)
    resources: dict[str, float]
    environment: list[str]


ClusterSettings = Annotated[NoCluster | LocalCluster | SlurmCluster | RayCluster, Field(discriminator="kind")]


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


class CompareSettings(_Group):
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


class ProxySettings(_Group):
    """The proxy stage."""

    host: str
    port: int


class Settings(_Group):
    """conf/config.yaml, composed."""

    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    budget: BudgetSettings
    search: SearchSettings
    storage: StorageSettings
    cluster: ClusterSettings
    tracking: TrackingSettings
    stages: list[Stage] = Field(min_length=1)
    study: str = Field(min_length=1)
    output: str
    cache: str
    seed: int = Field(ge=0)
    extensions: list[str]
    run_id: str | None
    registered: str | None
    generate: GenerateSettings
    maps: MapsSettings
    benchmark: BenchmarkSettings
    compare: CompareSettings
    proxy: ProxySettings

    @field_validator("extensions")
    @classmethod
    def _found_from_anywhere(cls, value: list[str]) -> list[str]:
        return [str(Path(path).absolute()) for path in value]  # workers may start elsewhere

    @model_validator(mode="after")
    def _a_front_has_several_budgets(self) -> "Settings":
        several, example = len(self.budget.budgets) > 1, f"budget.{self.budget.measure}=[0.1,0.2]"
        if several and not self.search.pareto:
            raise FlowpruneError(f"budget.{self.budget.measure} names several budgets: add search=pareto, or name one.")
        if self.search.pareto and not several and "search" in self.stages:
            raise FlowpruneError(f"search=pareto needs several budgets to search: name them, as in {example}.")
        if self.search.pareto and self.search.early_stopping:
            raise FlowpruneError(
                "search.early_stopping compares a trial with the one best trial, and a front has many: leave it false "
                "with search=pareto."
            )
        return self

    @model_validator(mode="after")
    def _conditional_parameters_have_a_sampler(self) -> "Settings":
        if self._conditional and self.search.sampler == "gp":
            raise FlowpruneError(
                "search.sampler=gp cannot model parameters that only some methods or merging rules have: leave it at "
                "auto, or choose tpe."
            )
        return self

    @property
    def _conditional(self) -> bool:
        return len(self.method.among) > 1 or len(self.search.merging) > 1

    @property
    def sampler(self) -> str:
        """The sampler of the search: with ``auto``, tpe where parameters are conditional, else gp."""
        chosen = self.search.sampler
        return chosen if chosen != "auto" else "tpe" if self._conditional else "gp"

    @property
    def part(self) -> str | None:
        """With search=pareto, the folder of a budget's own files inside the study's; None without, or with several."""
        budgets = self.budget.budgets
        return f"{self.budget.measure}-{budgets[0]:g}" if self.search.pareto and len(budgets) == 1 else None

    @property
    def folder(self) -> Path:
        """Where a config's own files are."""
        return Path(self.output) / (self.part or "")

    def each_budget(self) -> list["Settings"]:
        """The same for each budget alone."""
        budgets = self.budget.budgets
        alone = (self.budget.model_copy(update={self.budget.measure: [budget]}) for budget in budgets)
        return [self.model_copy(update={"budget": budget}) for budget in alone]


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
