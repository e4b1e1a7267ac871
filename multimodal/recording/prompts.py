"""The pruned prefill of a bucket of prompts: selection, merging and every layer, recorded once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig

from multimodal.config import PruningConfig
from multimodal.constants import constants_held
from multimodal.families import Geometry
from multimodal.recording.bucket import LEVEL, Bucket, length_axis
from multimodal.recording.recorded import Recorded
from multimodal.recording.slots import Slots
from multimodal.recording.told import Form, told, understood
from multimodal.runtime.group import members_of
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.outcome import Outcome
from multimodal.runtime.placed import Placed, numbers_of, packed, sendable, unpacked
from multimodal.runtime.prefill import Prefill
from multimodal.runtime.prompt import Prompt

OFFSET = "offset"  # how far a prompt is moved to the right in its bucket
Read = Callable[..., Tensor]  # a reading and the text model's arguments -> last hidden states [B, L, C]


@dataclass(frozen=True)
class Reader:
    """What reads.

    Args:
        geometry: of the model.
        text: config of its language model.
        config: how it prunes.
    """

    geometry: Geometry
    text: PretrainedConfig
    config: PruningConfig


class RecordedPrompt:
    """A prefill, for all prompts of a bucket.

    Args:
        bucket: which.
        reader: what reads.
        read: the text model's own forward, its layers driven by a reading.
        prompt: one of the bucket's.
        tensors: ``embeds`` ``[B, L, C]``, ``positions`` ``[B or 1, L]`` or ``[axes, B or 1, L]``, and, where there are
            any, ``blocks`` ``[B, L]`` and ``level 0``, ``level 1``, … ``[B, L, C]`` of that prompt.
        room: tokens that can follow a prompt.
        pool: of memory (:class:`Recorded`).
    """

    def __init__(
        self,
        bucket: Bucket,
        reader: Reader,
        read: Read,
        prompt: Prompt,
        tensors: Mapping[str, Tensor],
        room: int,
        pool: Any = None,
    ) -> None:
        self._reader = reader
        self._bucket = bucket
        device, layers = tensors["embeds"].device, reader.text.num_hidden_layers
        self._plan = bucket.plan(reader.config, layers)
        self.slots = Slots(layers, room, device)
        with torch.inference_mode(False):
            self._tensors = {name: torch.zeros_like(self._padded(name, given)) for name, given in tensors.items()}
            evidence = {kind: [torch.zeros_like(each) for each in given] for kind, given in prompt.evidence.items()}
            numbers = self._numbers(prompt)
            self._row = torch.zeros(sum(array.size for array in numbers.values()), dtype=torch.long, device=device)
        self._named = unpacked(self._row, {name: array.shape for name, array in numbers.items()})
        self._prompt = replace(bucket.padded(prompt), evidence=evidence, blocks=self._tensors.get("blocks"))
        self._form: Form
        self._load(prompt, tensors)
        with constants_held() as self._constants:
            self._recorded = Recorded(self._run, device, pool, read)

    @property
    def bytes(self) -> int:
        """Device memory that it holds."""
        own = (*self._tensors.values(), *(each for given in self._prompt.evidence.values() for each in given))
        return self._recorded.bytes + self.slots.bytes + sum(tensor.nbytes for tensor in own)

    def replay(self, read: Read, prompt: Prompt, tensors: Mapping[str, Tensor]) -> None:
        """Read another prompt of the bucket; arguments as above."""
        self._load(prompt, tensors)
        self._recorded.replay(read)

    def _load(self, prompt: Prompt, tensors: Mapping[str, Tensor]) -> None:
        self._row.copy_(sendable(packed(self._numbers(prompt)), self._row.device), non_blocking=True)
        for name, given in tensors.items():
            self._tensors[name].copy_(self._padded(name, given))
        own = [each for given in self._prompt.evidence.values() for each in given]
        if own:
            torch._foreach_copy_(own, [each for given in prompt.evidence.values() for each in given])

    def _padded(self, name: str, given: Tensor) -> Tensor:
        axis = length_axis(name)
        missing = self._bucket.length - given.shape[axis]
        return pad(given, (*[0, 0] * (-1 - axis), missing, 0), value=-1 if name == "blocks" else 0)

    def _numbers(self, prompt: Prompt) -> dict[str, np.ndarray]:
        moved, own = self._bucket.padded(prompt), self._bucket
        numbers = numbers_of(moved, members_of(moved, together=True), own.stays, own.text)
        return numbers | {OFFSET: np.array([own.length - prompt.valid.shape[1]])}

    def _run(self, read: Read) -> tuple[Tensor, Tensor, Tensor]:
        """The last hidden states, and everything else that is told, whole and real numbers apart."""
        reader, given = self._reader, self._tensors
        placed, offset = Placed.of(self._named), self._named[OFFSET]
        device = given["embeds"].device
        reading = Prefill(reader.geometry, reader.text, reader.config, self._prompt, None, device, placed, self._plan)
        levels = [given[name] for name in sorted(given) if name.startswith(LEVEL)]
        embeds, positions = reading.begin(given["embeds"], given["positions"], levels)
        self.slots.begin_prompt()
        hidden = read(reading, inputs_embeds=embeds, position_ids=positions, cache=self.slots)
        self.slots.see(reading.segments, hidden.dtype)
        whole, real, self._form = told(reading, offset)
        return hidden, whole, real

    def outcome(self, prompt: Prompt) -> tuple[Tensor, Outcome, Ledger]:
        """What the last replay, which was of a prompt, computed and did, copied.

        Returns:
            The last hidden states, what the prefill did, and what its layers hold; padded as the eager path pads.
        """
        hidden, whole, real = self._recorded.output
        layers = self._reader.text.num_hidden_layers
        outcome, ledger = understood(whole.clone(), real.clone(), self._form, prompt, self._reader.config, layers)
        last = outcome.segments[max(outcome.segments)].index.shape[1]
        return hidden[:, -last:].clone(), outcome, ledger
