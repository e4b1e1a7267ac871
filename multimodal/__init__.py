"""The library: prune the visual tokens of a stock transformers vision-language model."""

from multimodal import costs, importance, recycling
from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.loading import load_model
from multimodal.pruner import prune

__all__ = [
    "FlowpruneError",
    "PruningConfig",
    "PruningStep",
    "costs",
    "importance",
    "load_model",
    "prune",
    "recycling",
]
