"""OpenAI's chat completions: what a client sends, and what it reads."""

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MEANINGLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}  # to an answer
UNPRUNED = "none"  # what "pruning" says for an unpruned answer


class _Open(BaseModel):
    """Keeps what it does not know, which an engine may."""

    model_config = ConfigDict(extra="allow")


class TextPart(_Open):
    """A text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Open):
    """Where an image is."""

    url: str


class ImagePart(_Open):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Open):
    """What one side says."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """Its content as parts."""
        if isinstance(self.content, list):
            return self.content
        return [TextPart(type="text", text=self.content)] if self.content else []


class StreamOptions(_Open):
    """How an answer is streamed."""

    include_usage: bool = False


class ChatRequest(_Open):
    """What a client asks.

    Args:
        pruning: name of a config, ``none`` for an unpruned answer; None: the endpoint's default.
    """

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    pruning: str | None = None

    @property
    def limit(self) -> int | None:
        """Tokens of the answer, at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        """Texts at which the answer ends."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [each for each in found if each]

    @property
    def with_usage(self) -> bool:
        """Whether a streamed answer ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def unknown(self) -> list[str]:
        """What it has beside all this that would change an answer."""
        extra = self.model_extra or {}
        return [
            name for name, value in extra.items() if value not in (None, 0, False, [], {}) and name not in MEANINGLESS
        ]


class Reply:
    """The bodies of one answer.

    Args:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, text: str, finish_reason: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The answer at once."""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
        return self._head | {"object": "chat.completion", "choices": [choice | {"logprobs": None}], "usage": usage}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last part of a streamed answer, where it was asked for."""
        return self._head | {"object": "chat.completion.chunk", "choices": [], "usage": usage}
