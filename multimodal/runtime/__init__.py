"""The runtime: the only place that touches a running model. It takes a plan, asks the method, applies the selection."""

from multimodal.runtime.pruner import Pruner, prune

__all__ = ["Pruner", "prune"]
