"""What an engine does for the endpoint."""

from collections.abc import AsyncIterator, Hashable, Sequence
from typing import Any, Protocol

from pipelines.serving.chat import ChatRequest
from pipelines.serving.job import Job


class Engine(Protocol):
    """Answers jobs: what needs the model in the worker's thread, the rest in the event loop."""

    def check(self, request: ChatRequest) -> None:
        """Refuse what this engine cannot do.

        Raises:
            RefusalError: one sentence.
        """

    def key(self, job: Job) -> Hashable:
        """What jobs that are computed together have in common."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Compute jobs of one key, in the worker's thread."""

    async def whole(self, job: Job) -> dict[str, Any]:
        """The answer at once.

        Raises:
            RefusalError: there is none.
        """

    def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        """The answer in parts.

        Raises:
            RefusalError: there is none, or no more of it.
        """

    async def healthy(self) -> bool:
        """Whether it answers."""

    async def close(self) -> None:
        """Let go of what it holds."""
