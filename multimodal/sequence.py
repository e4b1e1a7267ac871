"""The batch as a run of layers sees it: which tokens of the unpruned sequence are left, and their masks and positions.

Rows that keep different counts are padded on the left. Index arithmetic stays on the device: lengths are known as
integers beforehand, so nothing here waits for the device.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multimodal.errors import FlowpruneError


@dataclass(frozen=True)
class Stage:
    """The sequence between two pruning steps.

    Args:
        index: place in the unpruned (padded) batch of each token ``[B, L]``; 0 where padded.
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

    def rows(self, hidden: Tensor) -> Tensor:
        """Gather this stage's tokens from the stage before ``[B, L_before, C]`` → ``[B, L, C]``."""
        return gather_tokens(hidden, self.gather)


def gather_tokens(values: Tensor, places: Tensor) -> Tensor:
    """``values[b, places[b]]`` for ``[B or 1, L_before, C]`` and ``[B, L]`` → ``[B, L, C]``."""
    values = values.expand(places.shape[0], -1, -1)
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def gather_positions(position_ids: Tensor, places: Tensor) -> Tensor:
    """Gather position ids ``[B or 1, L]`` or, with several rotary axes, ``[axes, B or 1, L]``."""
    if position_ids.ndim == 3:
        return torch.stack([gather_positions(axis, places) for axis in position_ids])
    return position_ids.expand(places.shape[0], -1).gather(1, places)


def stage_mask(mask: Any, stage: Stage, first_length: int, new: int, hidden: Tensor) -> Any:
    """The attention mask of a later stage, cut from the one that the model made for its first layer.

    Args:
        mask: None, ``[B, K]`` or ``[B or 1, heads or 1, Q, K]`` (boolean or additive), over the first layer's keys.
        stage: the stage.
        first_length: prompt tokens that the first layer sees.
        new: tokens since the prompt, those of this forward included; 0 at prefill.
        hidden: hidden states of this forward in this stage ``[B, Q, C]``.

    Raises:
        FlowpruneError: a mask of another form.
    """
    valid = with_new(stage.valid, new)
    if mask is None:
        return causal_mask(valid, hidden.shape[1], hidden.dtype) if stage.padded else None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise FlowpruneError(
            f"An attention mask of type {type(mask).__name__} cannot be cut: load the model with "
            "attn_implementation='sdpa'."
        )
    new_columns = torch.arange(first_length, mask.shape[-1], device=stage.index.device)
    columns = torch.cat([stage.from_first, new_columns.expand(len(stage.index), -1)], dim=1)
    mask = mask.expand(len(columns), *mask.shape[1:])
    if mask.ndim == 2:
        return mask.gather(1, columns) * valid.to(mask.dtype)
    if new == 0:
        mask = mask.gather(2, stage.from_first[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    mask = mask.gather(3, columns[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    if mask.dtype != torch.bool:
        return mask.masked_fill(~valid[:, None, None, :], torch.finfo(mask.dtype).min)
    mask = mask & valid[:, None, None, :]
    # a padding row that sees nothing would be NaN in some kernels
    return mask | ~stage.valid[:, None, :, None] if new == 0 else mask


def with_new(valid: Tensor, new: int) -> Tensor:
    """Append ``new`` valid tokens to a padding mask ``[B, L]``."""
    return torch.cat([valid, valid.new_ones(len(valid), new)], dim=1)


def causal_mask(valid: Tensor, queries: int, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """An additive causal mask ``[B, 1, queries, K]`` for the last ``queries`` of K keys.

    Args:
        valid: False where padded ``[B, K]``.
        queries: query tokens.
        dtype: of the mask.
        bias: added to the logits of the first keys ``[B, ≤ K]``.
    """
    keys = torch.arange(valid.shape[1], device=valid.device)
    seen = (keys <= keys[len(keys) - queries :, None]) & valid[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype, device=valid.device)
    if bias is not None:
        mask[..., : bias.shape[1]] += bias[:, None, :].to(dtype)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
