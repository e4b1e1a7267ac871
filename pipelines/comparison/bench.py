"""What all contenders are measured with: one model, the same held-out samples, the same timed prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from multimodal import PruningConfig
from multimodal.benchmark.device import device_name
from pipelines.comparison.contenders import Variant
from pipelines.comparison.measurement import Identity
from pipelines.data import Sample, data_digest
from pipelines.grading import grade
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs
from pipelines.workspace import Workspace
from search.digest import digest


@dataclass(frozen=True)
class Bench:
    """What all contenders are measured with.

    Args:
        workspace: of the run.
        opened: the model.
        samples: held out.
    """

    workspace: Workspace
    opened: OpenedModel
    samples: Sequence[Sample]

    @property
    def folder(self) -> Path:
        """Where measurements are kept."""
        return self.workspace.comparison

    @property
    def _rule(self) -> str:
        return self.workspace.settings.data.score

    @cached_property
    def data(self) -> str:
        """A digest of the samples and of how they are graded."""
        graded = [list(sample.answers) for sample in self.samples]
        return digest({"shown": data_digest(self.samples), "answers": graded, "score": self._rule})

    @cached_property
    def timed(self) -> list[Mapping[str, Tensor]]:
        """The prompts that are timed, each alone."""
        return [build_inputs(self.opened, [sample]) for sample in self.samples[: self.workspace.settings.compare.timed]]

    def identity(
        self, method: str, variant: Variant, budget: float | None = None, config: PruningConfig | None = None
    ) -> Identity:
        """Of a contender's measurement."""
        compare, device = self.workspace.settings.compare, device_name(self.opened.modules.text_model.device)
        return Identity(
            method=method,
            variant=variant,
            measure=self.workspace.settings.budget.measure,
            budget=budget,
            model=f"{self.workspace.settings.model.name} {self.opened.identity}",
            data=self.data,
            device=f"{device}, {len(self.timed)} prompts, {compare.repeats} times each",
            config=None if config is None else config.model_copy(update={"provenance": None}),
        )

    def grade(self, answers: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
        """What a contender's answers are worth, beside the unpruned model's."""
        right = [grade(answer, sample, self._rule) for answer, sample in zip(answers, self.samples, strict=True)]
        agrees = [a == u for a, u in zip(answers, reference, strict=True)]
        return {"answers": list(answers), "right": right, "agrees": agrees}
