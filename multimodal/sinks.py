"""Attention sinks: tokens that much of the attention goes to whatever is asked, by one column statistic.

One function serves the vision tower and the language model: a token's mean weight over the queries that can see it,
head by head (arXiv 2410.10781, §2; ACT, arXiv 2406.15765, §3). What differs is the threshold.
"""

import functools

import torch
from torch import Tensor

from multimodal.importance import attention_chunks

SINK = 0.1  # ACT's threshold for calibration
LANGUAGE_SINK = 0.3  # of the attention-sink metric of language models


def column_means(queries: Tensor, keys: Tensor, scaling: float, causal: bool = False) -> Tensor:
    """Mean attention that each token receives from the queries that can see it, head by head.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``.
        scaling: factor on the dot products.
        causal: whether a query sees no later token.

    Returns:
        ``[..., heads, N]``, float32.
    """
    sums = [attention.sum(-2) for attention in attention_chunks(queries, keys, scaling, causal=causal)]
    tokens = keys.shape[-2]
    seen_by = torch.arange(tokens, 0, -1, device=keys.device) if causal else tokens
    return functools.reduce(torch.add, sums) / seen_by


def sink_share(means: Tensor, threshold: float = LANGUAGE_SINK) -> Tensor:
    """Share of the heads in which a token is a sink: ``[..., heads, N]`` of :func:`column_means` → ``[..., N]``."""
    return (means > threshold).float().mean(-2)
