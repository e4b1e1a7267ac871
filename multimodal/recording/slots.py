"""Keys and values of one prompt at a time, in memory that stays where it is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from multimodal.runtime.segment import Segment

ALIGNED = 8  # attention kernels want masks of whole multiples


class Slots(Cache):
    """Every layer's keys and values: those of a pruned prompt, then room for new tokens.

    Args:
        layers: of the language model.
        room: tokens that can follow a prompt.
        device: where.

    Attributes:
        filled: how many have followed, before the one that is read now ``[1]``.
        masks: what new tokens see of the layers from each first one on, added to logits ``[B, 1, 1, slots]``.
    """

    def __init__(self, layers: int, room: int, device: torch.device) -> None:
        super().__init__(layers=[DynamicLayer() for _ in range(layers)])
        self.room = room
        self.keys: dict[int, Tensor] = {}  # by layer [B, key heads, slots, d]
        self.values: dict[int, Tensor] = {}
        self.width: dict[int, int] = {}  # slots that the prompt takes, by layer
        self.masks: dict[int, Tensor] = {}
        self.filled = torch.zeros(1, dtype=torch.long, device=device)
        self._next: dict[int, Tensor] | None = None  # where the token goes that is read now, by width; None: a prompt

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys.values(), *self.values.values()))

    def begin_prompt(self) -> None:
        """What is read from now on is a prompt."""
        self._next = None

    def begin_token(self) -> None:
        """What is read from now on is the one token after those that filled."""
        self._next = {width: self.filled + width for width in set(self.width.values())}
        for start, mask in self.masks.items():
            mask.index_fill_(3, self._next[self.width[start]], 0)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if self._next is not None:
            keys, values, place = self.keys[layer_idx], self.values[layer_idx], self._next[self.width[layer_idx]]
            return keys.index_copy_(2, place, key_states), values.index_copy_(2, place, value_states)
        if layer_idx not in self.keys:
            self.width[layer_idx] = key_states.shape[2]
            self.keys[layer_idx], self.values[layer_idx] = self._empty(key_states), self._empty(value_states)
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            store[layer_idx][:, :, : states.shape[2]].copy_(states)
        return key_states, value_states

    def _empty(self, states: Tensor) -> Tensor:
        slots = -(-(states.shape[2] + self.room) // ALIGNED) * ALIGNED
        with torch.inference_mode(False):  # what is written later, in whatever mode
            return torch.zeros(*states.shape[:2], slots, states.shape[3], dtype=states.dtype, device=states.device)

    def see(self, segments: Mapping[int, Segment], dtype: torch.dtype) -> None:
        """Let new tokens see what a prompt's layers hold."""
        hidden = torch.finfo(dtype).min
        for start, segment in segments.items():
            if start not in self.masks:
                slots = self.keys[start].shape[2]
                with torch.inference_mode(False):
                    self.masks[start] = torch.empty(
                        len(segment.valid), 1, 1, slots, dtype=dtype, device=segment.valid.device
                    )
            mask, width = self.masks[start][:, 0, 0], segment.valid.shape[1]
            seen = mask.new_zeros(segment.valid.shape) if segment.bias is None else segment.bias.to(dtype)
            mask[:, :width].copy_(seen.masked_fill(~segment.valid, hidden))
            mask[:, width:].fill_(hidden)

    def mask(self, layer: int) -> Tensor:
        """What new tokens see in a layer."""
        return self.masks[max(start for start in self.masks if start <= layer)]

    def get_seq_length(self, layer_idx: int = 0, *args: Any) -> int:
        return 0 if self._next is None else self.width[0]

    def get_mask_sizes(self, queries: Any, layer_idx: int) -> tuple[int, int]:
        new = queries if isinstance(queries, int) else len(queries)  # older versions pass positions
        return self.get_seq_length() + new, 0
