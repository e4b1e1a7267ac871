"""One request on its way: what is asked, and what the engine has said so far."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from pipelines.data import Sample
from pipelines.serving.chat import ChatRequest
from pipelines.serving.refusals import RefusalError


@dataclass(frozen=True)
class Visual:
    """What became of a request's visual tokens.

    Args:
        tokens: of the unpruned prompt.
        left: after each pruning step.
        retention: visual tokens seen by a layer ÷ original ones, averaged over layers.
    """

    tokens: int = 0
    left: tuple[int, ...] = ()
    retention: float = 1.0

    def usage(self, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """OpenAI's ``usage``, with what pruning saved; prompt tokens are those that the first layer reads."""
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {
                "visual_tokens": self.tokens,
                "visual_tokens_left": list(self.left),
                "retention": round(self.retention, 6),
            },
        }


@dataclass(eq=False)
class Job:
    """A request between the event loop that has its client and the thread that has the model.

    Args:
        request: as it came.
        sample: its conversation.
        images: the bytes of its images, in order.
        pruning: name of its config; None: unpruned.
    """

    request: ChatRequest
    sample: Sample
    images: list[bytes]
    pruning: str | None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    queued: float = field(default_factory=time.monotonic)
    visual: Visual = Visual()
    prompt_tokens: int = 0
    gone: bool = False  # its client is
    has_said: bool = False

    def __post_init__(self) -> None:
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    def say(self, what: Any) -> None:
        """Tell the event loop something; from any thread."""
        self.has_said = True
        self.loop.call_soon_threadsafe(self._said.put_nowait, what)

    async def heard(self) -> Any:
        """The next thing that was said.

        Raises:
            RefusalError: the job failed.
        """
        what = await self._said.get()
        if isinstance(what, RefusalError):
            raise what
        return what
