"""What a running vision tower shows of some views of one size."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerAttention:
    """What one attention layer of the tower compared, as the running model hands it over.

    Args:
        queries: ``[views, heads, tokens, d]``.
        keys: ``[views, key heads, tokens, d]``.
        values: ``[views, key heads, tokens, d]``.
        scaling: factor on the dot products of queries and keys.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float


@dataclass(frozen=True)
class TowerViews:
    """Some views of one size, out of all that the tower encoded together.

    Args:
        views: which of them, in order.
        attention: of the layers that were asked for, by what they were called (:class:`VisionRequest`).
        features: output of the layers that were asked for ``[views, tokens, C]``.
        pixels: un-normalized 8-bit levels of each patch, as float32 ``[views, patches, pixels, 3]``; None if nobody
            asked.
        score: what pruning inside the tower says of its tokens ``[views, tokens]``; None: nothing was pruned there.
        class_tokens: leading tower tokens that are no patch (class and register tokens).
    """

    views: tuple[int, ...]
    attention: Mapping[float, LayerAttention]
    features: Mapping[float, Tensor]
    pixels: Tensor | None
    score: Tensor | None
    class_tokens: int
