"""The batch as a run of layers sees it: which tokens of the unpruned prompt are left.

Rows that keep different counts are padded on the left. Index arithmetic stays on the device: lengths are known as
integers beforehand, so nothing here waits for the device.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """The sequence between two pruning steps.

    Args:
        index: place in the unpruned (padded) prompt of each token ``[B, L]``; 0 where padded.
        from_first: place in the sequence that the first layer sees ``[B, L]``.
        gather: place in the stage before ``[B, L]``.
        valid: False where padded ``[B, L]``.
        lengths: tokens of each row, padding not counted.
        bias: added to the attention logits of each key, in every layer ``[B, L]``; None: nothing.
    """

    index: Tensor
    from_first: Tensor
    gather: Tensor
    valid: Tensor
    lengths: tuple[int, ...]
    bias: Tensor | None = None

    @property
    def padded(self) -> bool:
        """Whether some row is padded."""
        return min(self.lengths) < self.index.shape[1]

    @classmethod
    def unpruned(cls, valid: Tensor, lengths: tuple[int, ...]) -> "Stage":
        """The sequence before any step, from its padding mask ``[B, L]``."""
        places = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        return cls(places, places, places, valid, lengths)

    def keep(self, keep: Tensor, lengths: tuple[int, ...], bias: Tensor | None, first: bool) -> "Stage":
        """The next stage: the tokens where ``keep`` holds, padded on the left to the longest row.

        Args:
            keep: ``[B, L]``, True for exactly ``lengths[b]`` tokens of row b.
            lengths: of the next stage's rows.
            bias: of this stage's tokens ``[B, L]``, or None.
            first: whether the next stage is what the first layer sees.
        """
        longest = max(lengths)
        # a stable sort puts the dropped first and the kept last, both in order
        gather = keep.to(torch.int8).argsort(dim=1, stable=True)[:, -longest:]
        valid = keep.gather(1, gather)
        gather = gather.where(valid, 0)
        index = self.index.gather(1, gather)
        own = torch.arange(longest, device=keep.device).expand_as(gather)
        return Stage(
            index=index,
            from_first=own if first else self.from_first.gather(1, gather),
            gather=gather,
            valid=valid,
            lengths=lengths,
            bias=None if bias is None else bias.gather(1, gather).where(valid, 0),
        )

    def places_after(self, keep: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Where each token of this stage stands in the stage that :meth:`keep` makes ``[B, L]``; dropped: undefined."""
        padding = max(lengths) - torch.tensor(lengths, device=keep.device)
        return (keep.cumsum(1) - 1 + padding.unsqueeze(1)).clamp(min=0)

    def without_last(self, tokens: int) -> "Stage":
        """The same without the last tokens of every row."""
        return replace(
            self,
            index=self.index[:, :-tokens],
            from_first=self.from_first[:, :-tokens],
            gather=self.gather[:, :-tokens],
            valid=self.valid[:, :-tokens],
            lengths=tuple(length - tokens for length in self.lengths),
            bias=None if self.bias is None else self.bias[:, :-tokens],
        )

    def to(self, device: torch.device) -> "Stage":
        """The same on another device."""
        bias = None if self.bias is None else self.bias.to(device)
        index, from_first, gather, valid = (
            t.to(device) for t in (self.index, self.from_first, self.gather, self.valid)
        )
        return Stage(index, from_first, gather, valid, self.lengths, bias)

    def rows(self, hidden: Tensor) -> Tensor:
        """Gather this stage's tokens from the stage before ``[B, L_before, C]`` → ``[B, L, C]``."""
        return gather_tokens(hidden, self.gather)


def gather_tokens(values: Tensor, places: Tensor) -> Tensor:
    """``values[b, places[b]]`` for ``[B or 1, L_before, C]`` and ``[B, L]`` → ``[B, L, C]``; axes before B stay."""
    if values.ndim == 4:  # rotary angles by axis
        return torch.stack([gather_tokens(axis, places) for axis in values])
    values = values.expand(places.shape[0], -1, -1)
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def gather_positions(position_ids: Tensor, places: Tensor) -> Tensor:
    """Gather position ids ``[B or 1, L]`` or, with several rotary axes, ``[axes, B or 1, L]``."""
    if position_ids.ndim == 3:
        return torch.stack([gather_positions(axis, places) for axis in position_ids])
    return position_ids.expand(places.shape[0], -1).gather(1, places)
