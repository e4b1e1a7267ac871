"""The batch as a run of layers sees it: which tokens of the unpruned prompt are left.

Rows that keep different counts are padded on the left. Counts are known beforehand, so nothing here waits for the
device or has a shape that depends on data.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from multimodal.gathering import tokens_at
from multimodal.runtime.masks import Keys


@dataclass(frozen=True)
class Segment:
    """The sequence between two pruning steps.

    Args:
        index: in the unpruned (padded) prompt, of each token ``[B, L]``, increasing; −1 where padded. Of a prompt that
            no step has cut yet, simply 0 … L − 1.
        valid: False where padded ``[B, L]``.
        lengths: tokens of each row, padding not counted; or, with ``at_most``, what they can be.
        cut: whether some step has made it.
        bias: added to the attention logits of each key, in every layer ``[B, L]``, float32; None: nothing.
        at_most: whether rows may be shorter than ``lengths``.
    """

    index: Tensor
    valid: Tensor
    lengths: tuple[int, ...]
    cut: bool
    bias: Tensor | None = None
    at_most: bool = False

    @classmethod
    def unpruned(cls, valid: Tensor, lengths: tuple[int, ...], at_most: bool = False) -> "Segment":
        """The prompt before any step, from its padding mask ``[B, L]``."""
        index = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        return cls(index, valid, lengths, cut=False, at_most=at_most)

    @property
    def padded(self) -> bool:
        """Whether some row is padded, or may be."""
        return self.at_most or min(self.lengths) < self.index.shape[1]

    @cached_property
    def gatherable(self) -> Tensor:
        """The index with 0 where padded ``[B, L]``."""
        return self.index.clamp(min=0) if self.cut and self.padded else self.index

    def slots(self, index: Tensor, rows: Tensor | None = None) -> Tensor:
        """Where tokens of the unpruned prompt stand in this segment.

        Args:
            index: in the unpruned prompt ``[B, n]``; of tokens that are still here.
            rows: which rows those of ``index`` are; None: all, in order.
        """
        if not self.cut:
            return index
        own = self.index if rows is None else self.index[rows]
        return torch.searchsorted(own.contiguous(), index.contiguous())

    def next(self, index: Tensor, lengths: tuple[int, ...], bias: Tensor | None) -> tuple["Segment", Tensor]:
        """The segment that a step leaves.

        Args:
            index: of the tokens left, in the unpruned prompt ``[B, at least the longest]``, in any order; −1 pads.
            lengths: of its rows.
            bias: of this segment's tokens ``[B, L]``, or None.

        Returns:
            The segment, and where its tokens stand in this one ``[B, longest]`` (0 where padded).
        """
        index = index.sort(dim=1).values[:, -max(lengths) :]
        left = Segment(index, index >= 0, lengths, cut=True, at_most=self.at_most)
        gather = self.slots(left.gatherable)
        if bias is not None:
            left = replace(left, bias=bias.gather(1, gather))
        return left, gather

    def keys(self, before: int) -> Keys:
        """What layers of this segment attend to, counted in a conversation that has ``before`` tokens before it."""
        return Keys(self.index + before if before else self.index, self.valid, self.padded, self.bias)

    def to(self, device: torch.device) -> "Segment":
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, index=self.index.to(device), valid=self.valid.to(device), bias=bias)


def gather_tokens(values: Tensor, slots: Tensor) -> Tensor:
    """``values[b, slots[b]]`` for ``[B or 1, L_before, C]`` and ``[B, L]`` → ``[B, L, C]``; axes before B stay."""
    if values.ndim == 4:  # rotary angles by axis
        return torch.stack([gather_tokens(axis, slots) for axis in values])
    if len(slots) == 1:  # the fewest launches
        return values.index_select(1, slots[0])
    return tokens_at(values.expand(len(slots), -1, -1), slots)


def gather_positions(position_ids: Tensor, slots: Tensor) -> Tensor:
    """Gather position ids ``[B or 1, L]`` or, with several rotary axes, ``[axes, B or 1, L]``."""
    slots = slots.expand(*position_ids.shape[:-2], *slots.shape)
    return position_ids.expand(*position_ids.shape[:-2], slots.shape[-2], -1).gather(-1, slots)
