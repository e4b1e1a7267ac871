"""One answer as it grows: tokens to text, up to its end."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Answer:
    """The text of one answer, token by token.

    Args:
        tokenizer: the model's.
        ends: token ids that end an answer.
        stops: texts that do, and are no part of it.
        limit: tokens, at most.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int], stops: Sequence[str], limit: int) -> None:
        self._tokenizer, self._ends, self._stops, self._limit = tokenizer, set(ends), stops, limit
        self._stream = DecodeStream(ids=[], skip_special_tokens=True)
        self._ids: list[int] = []
        self._decoded = ""
        self._told = 0  # characters
        self.finish_reason: str | None = None

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self._ids)

    def add(self, token: int) -> str:
        """Take a token; returns the text that is certain now."""
        if self.finish_reason is not None:
            return ""
        self._ids.append(token)
        if token in self._ends:
            self.finish_reason = "stop"
        else:
            self._decoded += self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
            if self.tokens == self._limit:
                self.finish_reason = "length"
        if self.finish_reason is not None:
            self._decoded = self._whole()
        found = [at for stop in self._stops if (at := self._decoded.find(stop)) >= 0]
        if found:
            self._decoded, self.finish_reason = self._decoded[: min(found)], "stop"
        certain = len(self._decoded) - (0 if self.finish_reason else self._held_back())
        told, self._told = self._told, max(self._told, certain)
        return self._decoded[told : self._told]

    def _whole(self) -> str:
        """All text, with what the stream held back of a character that never ended."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole if whole.startswith(self._decoded) else self._decoded

    def _held_back(self) -> int:
        """Characters at the end with which a stop may begin."""
        sizes = (
            size
            for stop in self._stops
            for size in range(1, min(len(stop), len(self._decoded) + 1))
            if self._decoded.endswith(stop[:size])
        )
        return max(sizes, default=0)
