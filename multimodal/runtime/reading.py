"""One forward pass of the language model over a pruned conversation: what each of its layers is given.

:class:`Reading` goes on with a conversation; :class:`Prefill` (:mod:`multimodal.runtime.prefill`) reads images, too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.costs import sliding_window
from multimodal.errors import FlowpruneError
from multimodal.families import Geometry
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.masks import Keys, attention_mask
from multimodal.versions import cache_of


class Reading:
    """A forward pass over tokens that no step cuts.

    Args:
        geometry: of the model.
        text_config: of the language model that runs, whose attention backend may change between forwards.
        past: what the cache holds; None: nothing.
        valid: False where the tokens that are read are padding ``[B, queries]``; None: none is.
        batch: rows.
        queries: tokens that are read.
        device: of the forward's tensors.
    """

    def __init__(
        self,
        geometry: Geometry,
        text_config: PretrainedConfig,
        past: Ledger | None,
        valid: Tensor | None,
        batch: int,
        queries: int,
        device: torch.device,
    ) -> None:
        self.geometry = geometry
        self.past = past
        self._text = text_config
        self._queries = queries
        self._memo: dict[Any, Any] = {}
        self._valid = valid
        self._batch = batch
        self._device = device
        self.before = 0 if past is None else past.read

    def start_of(self, layer: int) -> int:
        """First layer of the run of layers that hold what this one holds."""
        starts = {0, *(self.past.keys if self.past is not None else ())}
        return max(start for start in starts if start <= layer)

    def new_keys(self, layer: int) -> Keys:
        """What a layer reads in this forward."""
        index = torch.arange(self.before, self.before + self._queries, device=self._device).expand(self._batch, -1)
        if self._valid is None:
            return Keys(index, torch.ones_like(index, dtype=torch.bool), padded=False)
        return Keys(index, self._valid, padded=True)

    def kinds(self, layer: int) -> tuple[bool, bool]:
        """Whether any of the keys that a layer attends to is padding, and whether any has a bias."""
        new = self._valid is not None, False
        return new if self.past is None else either(new, self.past.kinds(layer))

    def blocks(self, layer: int) -> Tensor | None:
        """Which of a layer's new tokens see each other both ways ``[B, L]``, −1: none; None: no token does."""
        return None

    def ended(self) -> Ledger:
        """What the cache holds when all layers have read."""
        assert self.past is not None
        if self._valid is None:
            return self.past.advanced(self._queries)
        padding = (~self._valid).sum(1)
        new = self._valid.sum(1) + self.past.tail
        following = self.past.following + (new if self.past.following.ndim == 1 else new.unsqueeze(1))
        return self.past.extended({0: self.new_keys(0)}, self._queries, padding, following, self.past.shift)

    def enter_layer(self, layer: int, hidden: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What a layer is given instead of what the text model hands to all.

        Position ids are taken away: the rotary embedding is made, and flash attention would read ids that jump as
        several packed sequences.

        Args:
            layer: language-model layer.
            hidden: hidden states that reach it.
            inputs: its keyword arguments.

        Returns:
            Hidden states, and the keyword arguments that replace the given ones.
        """
        return hidden, {"position_ids": None, "attention_mask": self.mask(layer, hidden, cache_of(inputs))}

    def mask(self, layer: int, hidden: Tensor, cache: Any) -> Tensor | None:
        """A layer's attention mask, as its backend takes it; None: causal, and all is seen."""
        start, window = self.start_of(layer), self.window(layer)
        holds_all = cache is None or layer >= len(cache.layers) or not cache.layers[layer].is_sliding
        key = ("mask", start, window, holds_all, hidden.device, hidden.shape[1])
        return self.memoised(key, lambda: self._mask(start, window, holds_all, hidden))

    def window(self, layer: int) -> int | None:
        """A layer's sliding window, in tokens of the unpruned conversation; None if it hides nothing yet."""
        window = sliding_window(self._text, layer)
        return None if window is None or self.before + self._queries <= window else window

    def keys(self, layer: int) -> Keys:
        """All that a layer attends to: its cache, and the tokens of this forward."""
        start = self.start_of(layer)
        return self.memoised(("keys", start), lambda: self._keys(start))

    def memoised(self, key: Any, make: Callable[[], Any]) -> Any:
        """What the layers of this forward share."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def forget(self) -> None:
        """Let go of what only the layers of this forward share: masks, rotary angles, evidence."""
        self._memo.clear()

    def _keys(self, layer: int) -> Keys:
        new = self.new_keys(layer)
        if self.past is None:
            return new
        return Keys.following([self.past.at(layer).to(new.index.device), new])

    def _mask(self, layer: int, window: int | None, holds_all: bool, hidden: Tensor) -> Tensor | None:
        queries, blocks, backend = hidden.shape[1], self.blocks(layer), self._text._attn_implementation
        padded, biased = self.kinds(layer)
        check_backend(backend, biased)
        plain = window is None and blocks is None and not padded and not biased
        whole = self.past is None and backend == "sdpa"  # which is causal by itself
        if plain and (queries == 1 or whole):
            return None
        keys = self.keys(layer)
        if "flash" in backend:  # takes 2-D masks only
            return keys.valid.long().to(hidden.device) if padded else None
        if window is not None and not holds_all:  # sliding layers of a cache hold no more than that
            keys = keys.last(window - 1 + queries)
        mask = attention_mask(
            keys,
            keys.index[:, -queries:],
            hidden.dtype,
            window,
            blocks,
            blocks,
            self.geometry.window_cuts_blocks,
        )
        return mask.to(hidden.device)


def check_backend(backend: str, biased: bool) -> None:
    """Refuse a backend that cannot take the masks of a pruned prompt.

    Args:
        backend: of the language model.
        biased: whether something is added to the logits of some keys.

    Raises:
        FlowpruneError: one sentence with the one to choose.
    """
    if backend == "flex_attention" or (biased and "flash" in backend):
        raise FlowpruneError(
            f"{backend} does not take the masks of this pruned prompt: choose attn_implementation='sdpa'."
        )


def either(first: tuple[bool, bool], second: tuple[bool, bool]) -> tuple[bool, bool]:
    """The one or the other, each."""
    return first[0] or second[0], first[1] or second[1]
