"""The library: prune the visual tokens of a stock transformers vision-language model.

From pixels to tokens: what a method asks of the model (:mod:`multimodal.evidence`), what is known before the prefill
(:mod:`multimodal.plan`), and what touches the running model (:mod:`multimodal.runtime`). Names are imported when they
are first used, so that a mistake on the command line is said before torch is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from multimodal.errors import FlowpruneError

if TYPE_CHECKING:
    from multimodal import costs, importance, plan, recycling
    from multimodal.config import PruningConfig, PruningStep
    from multimodal.loading import load_model
    from multimodal.recording.recordings import Recordings
    from multimodal.runtime import prune

_HOMES = {
    "PruningConfig": "config",
    "PruningStep": "config",
    "Recordings": "recording.recordings",
    "load_model": "loading",
    "prune": "runtime",
}
_MODULES = ("costs", "importance", "plan", "recycling")

__all__ = [
    "FlowpruneError",
    "PruningConfig",
    "PruningStep",
    "Recordings",
    "costs",
    "importance",
    "load_model",
    "plan",
    "prune",
    "recycling",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
