"""The decoding step after a recorded prefill, recorded once; and the cache that goes on by it."""

from typing import Any
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache

from multimodal.constants import constants_held
from multimodal.recording.prompts import Read, Reader
from multimodal.recording.recorded import Recorded
from multimodal.recording.slots import Slots
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.reading import Reading


class _Step(Reading):
    """A forward pass over one token, in slots."""

    def __init__(self, reader: Reader, slots: Slots, batch: int, device: torch.device) -> None:
        super().__init__(reader.geometry, reader.text, None, None, batch, 1, device)
        self._slots = slots

    def mask(self, layer: int, hidden: Tensor, cache: Any) -> Tensor:
        return self._slots.mask(layer)


class RecordedToken:
    """The decoding step of a bucket's slots.

    Args:
        reader: what reads.
        read: the text model's own forward, its layers driven by a reading.
        slots: that hold a prompt.
        embeds: of the token ``[B, 1, C]``.
        positions: its position ``[B or 1, 1]`` or ``[axes, B or 1, 1]``.
        pool: of memory (:class:`Recorded`).
    """

    def __init__(
        self, reader: Reader, read: Read, slots: Slots, embeds: Tensor, positions: Tensor, pool: Any = None
    ) -> None:
        self._reader = reader
        self._slots = slots
        with torch.inference_mode(False):
            self._embeds, self._positions = torch.zeros_like(embeds), torch.zeros_like(positions)
        self._embeds.copy_(embeds)
        self._positions.copy_(positions)
        with constants_held() as self._constants:
            self._recorded = Recorded(self._run, embeds.device, pool, read)

    @property
    def bytes(self) -> int:
        """Device memory that it holds."""
        return self._recorded.bytes

    def fits(self, embeds: Tensor, positions: Tensor) -> bool:
        """Whether it is for such a token."""
        own, given = (self._embeds, self._positions), (embeds, positions)
        return all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(own, given, strict=True))

    def replay(self, read: Read, embeds: Tensor, positions: Tensor) -> None:
        """Read another token; arguments as above."""
        self._embeds.copy_(embeds)
        self._positions.copy_(positions)
        self._recorded.replay(read)

    @property
    def hidden(self) -> Tensor:
        """The last hidden states of the token read last ``[B, 1, C]``, copied."""
        return self._recorded.output.clone()

    def _run(self, read: Read) -> Tensor:
        embeds = self._embeds
        self._slots.begin_token()
        step = _Step(self._reader, self._slots, len(embeds), embeds.device)
        return read(step, inputs_embeds=embeds, position_ids=self._positions, cache=self._slots)


class Lease:
    """A cache whose layers hold views of slots, as long as no other prompt takes those.

    Args:
        slots: that hold its prompt.
        cache: which.
        ledger: what it holds.
    """

    def __init__(self, slots: Slots, cache: Cache, ledger: Ledger) -> None:
        self._slots = slots
        self._tokens = 0
        self.ledger = ledger
        self._first = {}
        layers: list[Any] = cache.layers
        for number, layer in enumerate(layers):
            keys, width = slots.keys[number], ledger.at(number).index.shape[1]
            self._first[number] = slots.width[number] - width
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        self._layers = [ref(layer) for layer in layers]
        self._show()

    @property
    def room(self) -> int:
        """Tokens that can still follow."""
        return self._slots.room - self._tokens

    def prepare(self) -> None:
        """The next token to be read is that after those that followed."""
        self._slots.filled.fill_(self._tokens)

    def advance(self) -> Ledger:
        """The token was read; returns what the cache holds now."""
        self._tokens += 1
        self.ledger = self.ledger.advanced(1)
        self._show()
        return self.ledger

    def _show(self) -> None:
        for number, known in enumerate(self._layers):
            if (layer := known()) is not None:
                own = slice(self._first[number], self._slots.width[number] + self._tokens)
                layer.keys = self._slots.keys[number][:, :, own]
                layer.values = self._slots.values[number][:, :, own]
                if layer.is_sliding:  # a window that hides nothing yet
                    layer.cumulative_length = own.stop - own.start

    def end(self) -> None:
        """Let go of the slots; a cache that still lives gets copies."""
        for number, known in enumerate(self._layers):
            layer = known()
            if layer is None or layer.keys is None:
                continue
            for name, store in (("keys", self._slots.keys), ("values", self._slots.values)):
                held = getattr(layer, name)
                if held.untyped_storage().data_ptr() == store[number].untyped_storage().data_ptr():
                    setattr(layer, name, held.clone())
