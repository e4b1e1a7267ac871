"""Attention is observed, not requested: a wrapper in transformers' attention registry sees queries and keys.

The vision tower keeps its own attention backend; the wrapper notes the query and key tensors of the layers wanted and
calls the backend below. Knows nothing of families or methods.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from multimodal.importance import attention_received, context_relevance, mean_attention, query_set

PREFIX = "flowprune_"

Observer = Callable[[Tensor, Tensor, float], None]
_observers: WeakKeyDictionary[nn.Module, Observer] = WeakKeyDictionary()


@dataclass(frozen=True)
class LayerAttention:
    """What one attention layer of the vision tower compared, as the running model hands it over.

    Args:
        queries: ``[views, heads, tokens, d]``.
        keys: ``[views, key heads, tokens, d]``.
        scaling: factor on their dot products.
    """

    queries: Tensor
    keys: Tensor
    scaling: float

    def received(self) -> Tensor:
        """:func:`multimodal.importance.attention_received` ``[views, tokens]``."""
        return attention_received(self.queries, self.keys, self.scaling)

    def context_relevance(self, threshold: float) -> Tensor:
        """:func:`multimodal.importance.context_relevance` ``[views, tokens]``."""
        return context_relevance(self.queries, self.keys, threshold, self.scaling)


@dataclass(frozen=True)
class MeanAttention:
    """The same layer's head-mean attention: what a search reads in every trial.

    Args:
        weights: ``[views, tokens, tokens]``.
        column_means: before rounding, so that query sets are exactly a running model's ``[views, tokens]``.
    """

    weights: Tensor
    column_means: Tensor

    @classmethod
    def of(cls, seen: LayerAttention, dtype: torch.dtype) -> "MeanAttention":
        """Compute it, the weights rounded to ``dtype``."""
        weights = mean_attention(seen.queries, seen.keys, seen.scaling)
        return cls(weights.to(dtype), seen.received())

    def received(self) -> Tensor:
        """As of :class:`LayerAttention`."""
        return self.column_means

    def context_relevance(self, threshold: float) -> Tensor:
        """As of :class:`LayerAttention`."""
        rows = query_set(self.column_means, threshold).to(self.weights.dtype)
        return (rows.unsqueeze(-2) @ self.weights).squeeze(-2).float()


@dataclass(frozen=True)
class VisionObservation:
    """What the vision tower showed of some views of one size, out of all that it encoded together.

    Args:
        views: which of them, in order.
        layers: attention by vision layer; −1 is the layer that feeds the projector.
        entropy: bits of each patch ``[views, patches]``; None when nobody asked.
        class_tokens: leading tower tokens that are no patch (class and register tokens).
    """

    views: tuple[int, ...]
    layers: Mapping[int, LayerAttention | MeanAttention]
    entropy: Tensor | None
    class_tokens: int


@contextmanager
def observed_attention(tower: PreTrainedModel, observers: Mapping[nn.Module, Observer]) -> Iterator[None]:
    """Call each observer with (queries, keys, scaling) when an attention module inside its layer runs.

    Args:
        tower: the vision model whose attention backend is wrapped; restored on exit.
        observers: by layer module; a tower may call one once for all views, or once a view.
    """
    if not observers:
        yield
        return
    config = tower.config
    backend = config._attn_implementation
    wrapped = {inner: observer for layer, observer in observers.items() for inner in layer.modules()}
    _observers.update(wrapped)
    config._attn_implementation = _observing(backend)
    try:
        yield
    finally:
        config._attn_implementation = backend
        for module in wrapped:
            _observers.pop(module, None)


def _observing(backend: str) -> str:
    """Register, once, a backend that observes and then does what ``backend`` does; returns its name."""
    name = PREFIX + backend

    def forward(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (observer := _observers.get(module)) is not None:
            scaling = kwargs.get("scaling")
            observer(query.detach(), key.detach(), query.shape[-1] ** -0.5 if scaling is None else scaling)
        return _backend_function(backend, module)(module, query, key, *args, **kwargs)

    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, forward)
        if backend in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    return name


def _backend_function(backend: str, module: nn.Module) -> Callable[..., Any]:
    if backend == "eager":  # each modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[backend]


def unnormalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit pixels ``[..., pixels, 3]`` from normalised ones ``[..., 3, pixels]`` of range 0–1 before normalisation."""
    mean_, std_ = (torch.tensor(x, dtype=torch.float32, device=pixels.device).unsqueeze(1) for x in (mean, std))
    return (pixels.float() * std_ + mean_).mul(255).round().clamp(0, 255).to(torch.uint8).transpose(-1, -2)
