"""The recorded path of one ``prune()`` block: prompts and tokens that some recording can read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from transformers import Cache

from multimodal.config import PruningConfig
from multimodal.errors import reason_of
from multimodal.families import Modules
from multimodal.recording.bucket import LEVEL, Bucket
from multimodal.recording.prompts import Read, Reader, RecordedPrompt
from multimodal.recording.reasons import call_reason, length_reason, model_reason
from multimodal.recording.recordings import Recordings
from multimodal.recording.tokens import Lease, RecordedToken
from multimodal.runtime.cache import PrunedCache, begin_recorded
from multimodal.runtime.outcome import Outcome
from multimodal.runtime.prompt import Prompt


@dataclass
class _Held:
    """A prompt's recording, the decoding step after it, and who holds its slots."""

    prompt: RecordedPrompt
    token: RecordedToken | None = None
    lease: Lease | None = None
    steps: bool = True  # whether the decoding step can be recorded

    def release(self) -> None:
        """Take the slots from who holds them."""
        if self.lease is not None:
            self.lease.end()
        self.lease = None

    @property
    def bytes(self) -> int:
        return self.prompt.bytes + (0 if self.token is None else self.token.bytes)


class ReadPrompt(NamedTuple):
    """The last hidden states of a prompt ``[B, L', C]``, and what its prefill did."""

    hidden: Tensor
    outcome: Outcome


class RecordedPath:
    """Reads by recordings what they can read.

    Args:
        recordings: that are kept.
        modules: of the model.
        config: how it is pruned.
        read: its text model's own forward, driven by a reading.

    Raises:
        FlowpruneError: nothing of it can be recorded, and ``recordings.insist`` is set.
    """

    def __init__(self, recordings: Recordings, modules: Modules, config: PruningConfig, read: Read) -> None:
        text = modules.text_model
        self._recordings = recordings
        self._modules = modules
        self._reader = Reader(modules.geometry, text.config, config)
        self._read = read
        weights = tuple(parameter.data_ptr() for parameter in text.parameters())
        self._known = ref(text), weights, config.model_dump_json()
        self._leases: WeakKeyDictionary[Cache, tuple[_Held, Lease]] = WeakKeyDictionary()
        self._reason = model_reason(modules, config)
        if self._reason is not None:
            recordings.decline(self._reason)

    def prompt(self, prompt: Prompt, cache: Cache | None, kwargs: Mapping[str, Any]) -> ReadPrompt | None:
        """Read a prompt; None: it must be read otherwise.

        Args:
            prompt: which, the first of its conversation.
            cache: an empty one, which is filled; None: none is.
            kwargs: the text model's arguments.
        """
        if self._reason is not None:
            return None
        if (reason := call_reason(self._modules.text_model, cache, kwargs)) is not None:
            self._recordings.decline(reason)
            return None
        tensors = self._tensors(prompt, kwargs)
        bucket = self._bucket(prompt, tensors)
        if (reason := length_reason(self._modules, bucket.length + self._recordings.new_tokens)) is not None:
            self._recordings.decline(reason)
            return None
        with self._recordings.lock, torch.no_grad():
            if (held := self._held(bucket, prompt, tensors)) is None:
                return None
            hidden, outcome, ledger = held.prompt.outcome(prompt)
            if cache is not None:
                begin_recorded(cache, ledger, len(self._modules.text_layers))
                held.lease = Lease(held.prompt.slots, cache, ledger)
                self._leases[cache] = held, held.lease
        return ReadPrompt(hidden, outcome)

    def _tensors(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if positions is None:
            first = self._modules.geometry.first_position
            positions = torch.arange(first, first + embeds.shape[1], device=embeds.device).unsqueeze(0)
        tensors = {"embeds": embeds, "positions": positions}
        levels = kwargs.get("deepstack_visual_embeds") or ()
        tensors |= {f"{LEVEL}{number}": prompt.spread(level) for number, level in enumerate(levels)}
        return tensors if prompt.blocks is None else tensors | {"blocks": prompt.blocks}

    def _bucket(self, prompt: Prompt, tensors: Mapping[str, Tensor]) -> Bucket:
        known = *self._known, self._modules.text_model.config._attn_implementation
        return Bucket.of(prompt, self._recordings.text_multiple, tensors, known)

    def _held(self, bucket: Bucket, prompt: Prompt, tensors: Mapping[str, Tensor]) -> _Held | None:
        """The recording of a prompt's bucket, which has read it."""
        own, reader = self._recordings, self._reader
        held = cast(_Held | None, own.find(bucket))
        if held is None:
            device = tensors["embeds"].device

            def make() -> _Held:
                pool = own.pool(device)
                return _Held(RecordedPrompt(bucket, reader, self._read, prompt, tensors, own.new_tokens, pool))

            return own.record(bucket, make, alike=self._known)
        held.release()
        held.prompt.replay(self._read, prompt, tensors)
        return held

    def token(self, cache: PrunedCache, embeds: Tensor, positions: Tensor, kwargs: Mapping[str, Any]) -> Tensor | None:
        """The last hidden state of a token after a recorded prompt ``[B, 1, C]``; None: it must be read otherwise.

        Args:
            cache: of the conversation.
            embeds: of the token ``[B, 1, C]``.
            positions: its position ``[B or 1, 1]`` or ``[axes, B or 1, 1]``.
            kwargs: the text model's arguments.
        """
        held, lease = self._leases.get(cache, (None, None))
        if held is None or lease is None or call_reason(self._modules.text_model, cache, kwargs) is not None:
            return None
        with self._recordings.lock, torch.no_grad():
            if held.lease is not lease or lease.ledger is not cache.ledger or not held.steps:
                return None  # others have its slots, or its cache was changed
            if not lease.room:
                self._recordings.tell(
                    f"An answer is longer than the {self._recordings.new_tokens} tokens that recordings have room for, "
                    "and goes on the eager way: raise new_tokens."
                )
                return None
            lease.prepare()
            if (token := self._token(held, embeds, positions)) is None:
                return None
            cache.ledger = lease.advance()
            return token.hidden

    def _token(self, held: _Held, embeds: Tensor, positions: Tensor) -> RecordedToken | None:
        """The recording of the decoding step, which has read a token."""
        if held.token is None:
            pool = self._recordings.pool(embeds.device)
            try:
                held.token = RecordedToken(self._reader, self._read, held.prompt.slots, embeds, positions, pool)
            except RuntimeError as error:
                self._recordings.decline(f"the decoding step cannot be recorded ({reason_of(error)})")
                held.steps = False
                return None
            self._recordings.settle()
        elif held.token.fits(embeds, positions):
            held.token.replay(self._read, embeds, positions)
        else:
            return None
        return held.token
