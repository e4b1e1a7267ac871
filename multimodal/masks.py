"""Attention masks of layers whose keys are what pruning has left of a longer sequence.

Everything is told in places of the unpruned sequence, so that causal order and sliding windows are those that the
unpruned model has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig


def sliding_window(text_config: PretrainedConfig, layer: int) -> int | None:
    """Tokens that a language-model layer sees, the one that looks included; None: all."""
    types = getattr(text_config, "layer_types", None)
    slides = types is None or types[layer] == "sliding_attention"
    return getattr(text_config, "sliding_window", None) if slides else None


@dataclass(frozen=True)
class Keys:
    """What some layers attend to: the tokens in their caches, and those of the present forward.

    Args:
        index: place in the unpruned sequence of each ``[B, K]``; anything where padded.
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
            zeros = (torch.zeros(part.index.shape, device=part.index.device) for part in parts)
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
        if number >= self.index.shape[1]:
            return self
        bias = None if self.bias is None else self.bias[:, -number:]
        return Keys(self.index[:, -number:], self.valid[:, -number:], self.padded, bias)


def attention_mask(
    keys: Keys,
    queries: int,
    dtype: torch.dtype,
    window: int | None = None,
    blocks: Tensor | None = None,
    window_cuts_blocks: bool = False,
) -> Tensor:
    """An additive mask ``[B, 1, queries, K]`` for the last ``queries`` of the keys.

    Args:
        keys: of the layer.
        queries: tokens of the present forward.
        dtype: of the mask.
        window: a query sees keys less than this far back in the unpruned sequence; None: all before it.
        blocks: of the queries ``[B, queries]``: those of one block see each other both ways; −1: no block.
        window_cuts_blocks: whether not what is outside the window; else in any case.
    """
    key, query = keys.index[:, None, :], keys.index[:, -queries:, None]
    seen = key <= query
    if window is not None and not window_cuts_blocks:
        seen &= query - key < window
    if blocks is not None:
        together = (blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, :, None] >= 0)
        seen[..., -queries:] |= together
    if window is not None and window_cuts_blocks:
        seen &= query - key < window
    seen &= keys.valid[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    if keys.bias is not None:
        mask += keys.bias[:, None, :].to(dtype)
    return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)
