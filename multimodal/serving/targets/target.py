"""What a target is told, and what all targets have in common."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from multimodal.config import PruningConfig
from multimodal.options import ENGINE_FILE
from multimodal.serving.limits import one_step_ratio


@dataclass(frozen=True)
class EngineArguments:
    """What an engine is told.

    Args:
        target: which.
        arguments: by the engine's own names.
        commands: ready to run, but for words in capitals.
        retention: of the config, as its schedule has it.
        keep_ratio: share of the visual tokens that the engine keeps, before the language model.
        remarks: what a reader must know.
    """

    target: str
    arguments: dict[str, Any]
    commands: tuple[str, ...]
    retention: float
    keep_ratio: float
    remarks: tuple[str, ...] = ()

    def save(self, folder: Path) -> Path:
        """Write ``TARGET.json`` into a folder; returns its path."""
        path = folder / ENGINE_FILE.format(self.target)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path


def allowed_ratio(config: PruningConfig, layers: int) -> float:
    """The share of visual tokens that one step before the language model may keep: the config's retention, or what its
    budget asked for where rounding to whole tokens has left a little of that.
    """
    ratio, budget = one_step_ratio(config.schedule, layers), config.budget
    asked = budget.asked if budget is not None and budget.measure == "retention" else ratio
    return min(max(ratio, asked), 1.0)


def rounded_up(value: float, digits: int) -> float:
    """To that many decimals, never below: a share to prune that is rounded keeps no more than was allowed."""
    scale = 10**digits
    return math.ceil(round(value * scale, 6)) / scale


def odd_parts(config: PruningConfig, layers: Sequence[int] | None = None) -> list[str]:
    """What of a config no engine's own rule knows: merging, counts that follow the image, several steps.

    Args:
        config: how to prune.
        layers: of its steps, as the engine takes them; None: any one step.
    """
    found = []
    steps = [step.layer for step in config.schedule]
    if (len(steps) > 1) if layers is None else (steps != list(layers)):
        found.append(f"steps before layers {steps}")
    if config.merging is not None and config.merging.rule != "none":
        found.append(f"the merging rule {config.merging.rule}")
    if config.adaptive is not None:
        found.append("budgets that adapt")
    return found
