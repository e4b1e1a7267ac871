"""A cache of a pruned conversation: transformers' own, which knows what it holds and counts unpruned tokens.

A cache that a pruned prompt is read into becomes one of a subclass of its class, and stays the caller's object.
``get_seq_length`` counts the tokens of the conversation that were read, so that ``generate()`` and the models find
lengths and positions as ever; whatever changes rows or length changes what was noted with it.
"""

from collections.abc import Callable
from functools import cache as once
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import DynamicLayer

from multimodal.errors import FlowpruneError
from multimodal.runtime.ledger import Ledger
from multimodal.versions import cropped_tokens


class PrunedCache(Cache):
    """What is added to a cache class.

    Attributes:
        ledger: the tokens that it holds; None before the first have been read.
        driven: whether a ``prune()`` block is reading with it now.
    """

    ledger: Ledger | None
    driven: bool

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if not self.driven:
            raise FlowpruneError("This cache is of a pruned prompt: go on with it inside a prune() block.")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0, *args: Any) -> int:
        return 0 if self.ledger is None else self.ledger.read

    def get_mask_sizes(self, queries: Any, layer_idx: int) -> tuple[int, int]:
        # a base model may make masks of the unpruned conversation, which layers then do not use
        new = queries if isinstance(queries, int) else len(queries)  # older versions pass positions
        return self.get_seq_length() + new, 0

    @property
    def max_batch_size(self) -> int:
        # older versions use a static cache again where this fits, which one that was served does nowhere
        own: Any = super()
        return -1 if "static_layers" in vars(self) else own.max_batch_size

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._change_rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._change_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._change_rows(lambda tensor: tensor[indices.to(tensor.device)])

    def _change_rows(self, select: Callable[[Tensor], Tensor]) -> None:
        if self.ledger is not None:
            self.ledger = self.ledger.rows(select)

    def crop(self, *args: int, **kwargs: int) -> None:
        [tokens] = (*args, *kwargs.values())  # its name changes with the version
        if self.ledger is None:
            return
        ledger, lost = self.ledger.cropped(cropped_tokens(tokens, self.ledger.read))
        layers: list[Any] = self.layers
        for number, layer in enumerate(layers):
            _check_window(layer, lost(number))
        self.ledger = ledger
        for number, layer in enumerate(layers):
            if lost(number) or not tokens:  # by 0, newer versions cut windows back to their size
                layer.crop(-lost(number))

    def reset(self) -> None:
        self.layers = vars(self).pop("static_layers", self.layers)
        super().reset()
        bases = type(self).__bases__
        del self.ledger, self.driven
        self.__class__ = bases[-1]

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self).__bases__[-1], dict(vars(self)))


def _check_window(layer: Any, lost: int) -> None:
    """Refuse to take back what a sliding window has let go."""
    if not layer.is_sliding or not lost:
        return
    left = layer.get_seq_length() - lost
    if layer.keys.shape[-2] - lost < min(left, layer.sliding_window - 1):
        raise FlowpruneError(
            f"The cache cannot be cropped by {lost} tokens: its sliding windows have let go of what came before; call "
            "cache.activate_past_recording() before the prompt, or read it again."
        )


def begin_pruned(cache: Cache, ledger: Ledger | None) -> None:
    """Let a cache know what it holds.

    Raises:
        FlowpruneError: it is of a kind whose layers cannot differ in length.
    """
    check_dynamic(cache)
    _know(cache, ledger)


def check_dynamic(cache: Cache) -> None:
    """Refuse a cache whose layers cannot differ in length, which a recording alone can fill.

    Raises:
        FlowpruneError: it is one.
    """
    if not isinstance(cache, DynamicCache | QuantizedCache | PrunedCache):
        raise FlowpruneError(
            f"{type(cache).__name__} cannot hold layers of different lengths: leave cache_implementation unset, or "
            "open the block with recordings=Recordings()."
        )


def begin_recorded(cache: Cache, ledger: Ledger, layers: int) -> None:
    """Let an empty cache know what it holds, whose layers a recording fills.

    Args:
        cache: a dynamic one, or a static one, whose layers have the lengths of a dynamic one's from now on.
        ledger: what it holds.
        layers: of the language model.
    """
    if isinstance(cache, StaticCache):
        vars(cache).setdefault("static_layers", cache.layers)
        cache.layers = []
    cache.layers += [DynamicLayer() for _ in range(layers - len(cache.layers))]
    _know(cache, ledger)


def _know(cache: Cache, ledger: Ledger | None) -> None:
    own: Any = cache
    if not isinstance(cache, PrunedCache):
        own.__class__ = _pruned(own.__class__)
        own.driven = False
    own.ledger = ledger


@once
def _pruned(kind: Any) -> Any:
    return type(f"Pruned{kind.__name__}", (PrunedCache, kind), {})


def _rebuilt(kind: Any, state: dict[str, Any]) -> Cache:
    cache = kind.__new__(_pruned(kind))
    vars(cache).update(state)
    return cache
