"""conf/budget: what pruning may cost."""

from typing import Any, get_args

from pydantic import ValidationInfo, field_validator, model_validator

from multimodal import FlowpruneError
from multimodal.options import Measure
from pipelines.settings.group import Group

MEASURES: tuple[Measure, ...] = get_args(Measure)


class BudgetSettings(Group):
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
