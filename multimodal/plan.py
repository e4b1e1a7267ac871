"""The plan: everything that is known of a pruned prompt before it is read, by integer arithmetic on counts.

Counts come from layouts, lengths and the schedule; no model, no device, no tensor of values. Costs, budgets, reports
and the runtime read the same plan; what the runtime keeps must sum to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from multimodal.config import PruningStep
from multimodal.layout import Layout


def kept_count(layout: Layout, keep_ratio: float, left: int) -> int:
    """Visual tokens of one image that a step keeps of those left, newline tokens included.

    round(keep_ratio · left), halves up, but every newline token and at least one other.
    """
    return min(left, max(len(layout.newlines) + 1, math.floor(keep_ratio * left + 0.5)))


def step_ratio(layout: Layout, step: PruningStep, number: int) -> float:
    """The keep ratio of one image's n-th step, counted from 0: the first follows the image where budgets adapt."""
    return step.keep_ratio if number else min(step.keep_ratio * layout.keep_weight, 1.0)


def kept_counts(layout: Layout, schedule: Sequence[PruningStep]) -> list[int]:
    """Visual tokens of one image that are left after each step, newline tokens included."""
    left, counts = layout.visual_tokens, []
    for number, step in enumerate(schedule):
        left = kept_count(layout, step_ratio(layout, step, number), left)
        counts.append(left)
    return counts


def visual_tokens_by_layer(layout: Layout, schedule: Sequence[PruningStep], layers: int) -> list[int]:
    """Visual tokens of one image that each language-model layer sees ``[layers]``."""
    return by_layer(layout.visual_tokens, kept_counts(layout, schedule), schedule, layers)


def by_layer(original: int, kept: Sequence[int], schedule: Sequence[PruningStep], layers: int) -> list[int]:
    """Tokens that each layer sees ``[layers]``, of so many originally and so many kept after each step."""
    tokens = [original] * layers
    for step, count in zip(schedule, kept, strict=True):
        tokens[step.layer :] = [count] * (layers - step.layer)
    return tokens


@dataclass(frozen=True)
class RowPlan:
    """One prompt under a schedule.

    Args:
        text_tokens: tokens that are not visual, padding not counted.
        visual_tokens: visual tokens, unpruned.
        kept: visual tokens left after each step.
        schedule: the pruning steps.
        layers: of the language model.
    """

    text_tokens: int
    visual_tokens: int
    kept: tuple[int, ...]
    schedule: tuple[PruningStep, ...]
    layers: int

    @cached_property
    def visual_tokens_by_layer(self) -> list[int]:
        """Visual tokens that each layer sees ``[layers]``."""
        return by_layer(self.visual_tokens, self.kept, self.schedule, self.layers)

    @property
    def tokens_by_layer(self) -> list[int]:
        """Tokens that each layer sees and caches, text included ``[layers]``."""
        return [self.text_tokens + visual for visual in self.visual_tokens_by_layer]

    @property
    def retention(self) -> float:
        """Visual tokens seen by a layer ÷ original ones, averaged over layers; 1 for a prompt of text alone."""
        if not self.visual_tokens:
            return 1.0
        return sum(self.visual_tokens_by_layer) / (self.layers * self.visual_tokens)


@dataclass(frozen=True)
class Plan:
    """A batch of prompts under a schedule.

    Args:
        schedule: the pruning steps.
        layers: of the language model.
        rows: one a prompt.
    """

    schedule: tuple[PruningStep, ...]
    layers: int
    rows: tuple[RowPlan, ...]

    @property
    def starts(self) -> tuple[int, ...]:
        """First layer of each segment: a run of layers that see the same tokens."""
        return tuple(sorted({0, *(step.layer for step in self.schedule)}))

    def lengths(self, layer: int) -> tuple[int, ...]:
        """Tokens of each prompt that a layer sees, padding not counted ``[prompts]``."""
        return tuple(row.tokens_by_layer[layer] for row in self.rows)


def make_plan(prompts: Sequence[tuple[Sequence[Layout], int]], schedule: Sequence[PruningStep], layers: int) -> Plan:
    """Plan a batch.

    Args:
        prompts: (layouts of its images and videos, tokens that are not visual) of each.
        schedule: the pruning steps.
        layers: of the language model.
    """
    steps, rows = tuple(schedule), []
    for layouts, text_tokens in prompts:
        counts = [kept_counts(layout, steps) for layout in layouts]
        kept = tuple(sum(image[step] for image in counts) for step in range(len(steps)))
        rows.append(RowPlan(text_tokens, sum(layout.visual_tokens for layout in layouts), kept, steps, layers))
    return Plan(steps, layers, tuple(rows))
