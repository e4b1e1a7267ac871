"""Attention masks of layers whose keys are what pruning has left of a longer sequence.

Everything is told by index in the unpruned sequence, so that causal order and sliding windows are those that the
unpruned model has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Keys:
    """What some layers attend to: the tokens in their caches, and those of the present forward.

    Args:
        index: in the unpruned sequence, of each ``[B, K]``; anything where padded.
        valid: False where padded ``[B, K]``.
        padded: whether any is.
        bias: added to each key's attention logits ``[B, K]``; None: nothing.
    """

    index: Tensor
    valid: Tensor
    padded: bool
    bias: Tensor | None = None

    @classmethod
    def following(cls, parts: Sequence["Keys"]) -> "Keys":
        """Several stretches of a sequence, one after the other."""
        bias = None
        if any(part.bias is not None for part in parts):
            zeros = (torch.zeros(k.index.shape, dtype=torch.float32, device=k.index.device) for k in parts)
            bias = torch.cat([z if part.bias is None else part.bias for part, z in zip(parts, zeros, strict=True)], 1)
        return cls(
            torch.cat([part.index for part in parts], 1),
            torch.cat([part.valid for part in parts], 1),
            any(part.padded for part in parts),
            bias,
        )

    @classmethod
    def contiguous(cls, start: int, length: int, like: Tensor) -> "Keys":
        """Tokens that are all there, from ``start`` on, in a batch ``like`` another ``[B, …]``."""
        index = torch.arange(start, start + length, device=like.device).expand(len(like), -1)
        return cls(index, torch.ones_like(index, dtype=torch.bool), padded=False)

    def last(self, number: int) -> "Keys":
        """The last of them: what a sliding window's cache holds."""
        return self if number >= self.index.shape[1] else self.mapped(lambda tensor: tensor[:, -number:])

    def first(self, number: int) -> "Keys":
        """The first of them."""
        return self.mapped(lambda tensor: tensor[:, :number])

    def to(self, device: torch.device) -> "Keys":
        """The same on another device."""
        return self if self.index.device == device else self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Keys":
        """The same with every tensor changed."""
        bias = None if self.bias is None else change(self.bias)
        return Keys(change(self.index), change(self.valid), self.padded, bias)


def attention_mask(
    keys: Keys,
    queries: Tensor,
    dtype: torch.dtype,
    window: int | None = None,
    blocks: Tensor | None = None,
    query_blocks: Tensor | None = None,
    window_cuts_blocks: bool = False,
) -> Tensor:
    """An additive mask ``[B, 1, Q, K]``.

    Args:
        keys: of the layer.
        queries: their index in the unpruned sequence ``[B, Q]``.
        dtype: of the mask.
        window: a query sees keys less than this far back in the unpruned sequence; None: all before it.
        blocks: of the last keys, those of the present forward ``[B, L]``: tokens of one block see each other both ways;
            −1: no block.
        query_blocks: of the queries ``[B, Q]``.
        window_cuts_blocks: whether not what is outside the window; else in any case.
    """
    key, query = keys.index[:, None, :], queries[:, :, None]
    seen = key <= query
    if window is not None and not window_cuts_blocks:
        seen &= query - key < window
    if blocks is not None and query_blocks is not None:
        together = (query_blocks[:, :, None] == blocks[:, None, :]) & (query_blocks[:, :, None] >= 0)
        seen[..., -blocks.shape[1] :] |= together
    if window is not None and window_cuts_blocks:
        seen &= query - key < window
    seen &= keys.valid[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    if keys.bias is not None:
        mask += keys.bias[:, None, :].to(dtype)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
