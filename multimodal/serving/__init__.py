"""Serving by engines outside this process: what they can do of a pruning config, and how they are told."""

from multimodal.serving.limits import STOCK_VLLM, VLLM, Limits, check_servable, nearest_servable, one_step_ratio

__all__ = ["STOCK_VLLM", "VLLM", "Limits", "check_servable", "nearest_servable", "one_step_ratio"]
