"""conf/config.yaml, composed: all that a run is told, checked across groups."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from multimodal import FlowpruneError
from pipelines.settings.budget import BudgetSettings
from pipelines.settings.cluster import ClusterSettings
from pipelines.settings.data import DataSettings
from pipelines.settings.engine import EngineSettings
from pipelines.settings.group import Group, PathText
from pipelines.settings.method import MethodSettings
from pipelines.settings.model import ModelSettings
from pipelines.settings.search import SearchSettings
from pipelines.settings.serving import ServingSettings
from pipelines.settings.stages import (
    BenchmarkSettings,
    CompareSettings,
    GenerateSettings,
    MapsSettings,
    ProxySettings,
    ServeSettings,
    Stage,
)
from pipelines.settings.storage import StorageSettings
from pipelines.settings.tracking import TrackingSettings


class Settings(Group):
    """conf/config.yaml, composed."""

    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    budget: BudgetSettings
    search: SearchSettings
    serving: ServingSettings
    storage: StorageSettings
    cluster: ClusterSettings
    tracking: TrackingSettings
    engine: EngineSettings
    stages: list[Stage] = Field(min_length=1)
    study: str = Field(min_length=1)
    output: PathText
    cache: PathText
    seed: int = Field(ge=0)
    extensions: list[str]
    run_id: str | None
    registered: str | None
    generate: GenerateSettings
    maps: MapsSettings
    benchmark: BenchmarkSettings
    compare: CompareSettings
    proxy: ProxySettings
    serve: ServeSettings

    @field_validator("extensions")
    @classmethod
    def _found_from_anywhere(cls, value: list[str]) -> list[str]:
        return [str(Path(path).expanduser().absolute()) for path in value]  # workers may start elsewhere

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
    def steps(self) -> int:
        """Pruning steps of the search: the one that an engine can take, or as many as were asked for."""
        return self.search.steps if self.serving.engine is None else 1

    @property
    def sampler(self) -> str:
        """The sampler of the search: with ``auto``, tpe where parameters are conditional, else gp."""
        chosen = self.search.sampler
        return chosen if chosen != "auto" else "tpe" if self._conditional else "gp"
