"""The library: prune the visual tokens of a stock transformers vision-language model.

From pixels to tokens: what a method asks of the model (:mod:`multimodal.evidence`), what is known before the prefill
(:mod:`multimodal.plan`), and what touches the running model (:mod:`multimodal.runtime`).
"""

from multimodal import costs, importance, plan, recycling
from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.loading import load_model
from multimodal.runtime import prune

__all__ = [
    "FlowpruneError",
    "PruningConfig",
    "PruningStep",
    "costs",
    "importance",
    "load_model",
    "plan",
    "prune",
    "recycling",
]
