"""Every test's prompts read by recordings, wherever they can be: the suites' own answers are the oracle."""

from functools import wraps
from typing import Any

from multimodal import Recordings
from multimodal.runtime.pruner import Pruner


def read_by_recordings() -> None:
    """Give every block recordings: its own, or else these."""
    shared, plain = Recordings(text_multiple=16, new_tokens=24), Pruner.__init__

    @wraps(plain)
    def recorded(pruner: Pruner, model: Any, config: Any, recordings: Recordings | None = None) -> None:
        plain(pruner, model, config, recordings or shared)

    Pruner.__init__ = recorded  # type: ignore[method-assign, assignment]
