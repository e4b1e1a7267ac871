"""What a cache holds of a conversation: the one object of state, owned by the cache, following its rows.

Tensors and numbers alone, so that it is copied, pickled and saved with the cache's keys and values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multimodal.errors import FlowpruneError
from multimodal.runtime.masks import Keys


@dataclass(frozen=True)
class Ledger:
    """The tokens that each layer's cache holds.

    Args:
        read: tokens of the unpruned conversation that were read, padding counted.
        tail: how many of them, the last, are in every layer and row; they are not in ``keys``.
        keys: what layers hold, by the first layer that holds it (0 is always among them).
        padding: of each row's conversation, places that are no token ``[B]``.
        following: position id, in the unpruned conversation, of each row's first token of the tail ``[B]``, or on each
            rotary axis ``[B, axes]``.
        shift: how far compact positions lie behind those of the unpruned conversation ``[B, 1]``; None: not at all.
    """

    read: int
    tail: int
    keys: Mapping[int, Keys]
    padding: Tensor
    following: Tensor
    shift: Tensor | None = None

    @classmethod
    def unpruned(cls, valid: Tensor, first_position: int) -> "Ledger":
        """Of a conversation that was read as it is, from its padding mask ``[B, L]``."""
        index = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
        keys = Keys(index, valid, padded=valid.shape[1] > 0)
        return cls(valid.shape[1], 0, {0: keys}, (~valid).sum(1), valid.sum(1) + first_position)

    def at(self, layer: int) -> Keys:
        """All that a layer's cache holds."""
        keys = self.keys[max(start for start in self.keys if start <= layer)]
        if not self.tail:
            return keys
        return Keys.following([keys, Keys.contiguous(self.read - self.tail, self.tail, keys.index)])

    def kinds(self, layer: int) -> tuple[bool, bool]:
        """Whether any of what a layer's cache holds is padding, and whether any has a bias."""
        keys = self.keys[max(start for start in self.keys if start <= layer)]
        return keys.padded, keys.bias is not None

    def advanced(self, new: int) -> "Ledger":
        """After tokens that every row has and no step cuts."""
        return replace(self, read=self.read + new, tail=self.tail + new)

    def positions(self, new: int) -> Tensor:
        """Position ids of the next tokens, in the unpruned conversation ``[B, new]`` or ``[axes, B, new]``."""
        steps = torch.arange(self.tail, self.tail + new, device=self.following.device)
        return self.following.movedim(0, -1).unsqueeze(-1) + steps

    def extended(
        self, new: Mapping[int, Keys], tokens: int, padding: Tensor, following: Tensor, shift: Tensor | None
    ) -> "Ledger":
        """After a turn.

        Args:
            new: what layers hold of it, by the first layer.
            tokens: of the unpruned turn, padding counted.
            padding: of each of its rows ``[B]``.
            following: position ids after it.
            shift: of compact positions from now on.
        """
        keys = {}
        for layer in self.keys.keys() | new.keys():
            own = new[max(start for start in new if start <= layer)]
            before = self.at(layer)
            keys[layer] = Keys.following([before.to(own.index.device), own])
        return Ledger(self.read + tokens, 0, keys, self.padding.to(padding.device) + padding, following, shift)

    def rows(self, select: Callable[[Tensor], Tensor]) -> "Ledger":
        """With its rows selected, reordered or repeated as a function does it to any tensor of rows."""
        return replace(
            self,
            keys={layer: keys.mapped(select) for layer, keys in self.keys.items()},
            padding=select(self.padding),
            following=select(self.following),
            shift=None if self.shift is None else select(self.shift),
        )

    def cropped(self, tokens: int) -> tuple["Ledger", Callable[[int], int]]:
        """Without the last tokens of the unpruned conversation.

        Returns:
            The ledger, and by layer how many tokens its cache loses.

        Raises:
            FlowpruneError: rows would lose different numbers of tokens, as where images of different sizes are cut.
        """
        if tokens > self.read:
            raise FlowpruneError(f"The cache cannot be cropped by {tokens} tokens: {self.read} have been read.")
        if tokens <= self.tail:
            return replace(self, read=self.read - tokens, tail=self.tail - tokens), lambda layer: tokens
        read, keys, lost = self.read - tokens, {}, {}
        for layer, own in self.keys.items():
            beyond = ((own.index >= read) & own.valid).sum(1)
            number = int(beyond.max())
            if number != int(beyond.min()):
                raise FlowpruneError(
                    f"The cache cannot be cropped by {tokens} tokens: rows have lost different numbers of them to "
                    "pruning; crop to before the images, or row by row."
                )
            keys[layer] = own.first(own.index.shape[1] - number)
            lost[layer] = number + self.tail
        following = self.following - (tokens - self.tail)  # what is cut is text, in which positions count tokens
        ledger = replace(self, read=read, tail=0, keys=keys, following=following)
        return ledger, lambda layer: lost[max(start for start in lost if start <= layer)]
