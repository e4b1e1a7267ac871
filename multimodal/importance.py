"""Importance statistics of the vision tower: what an image contains (entropy) and what attention says about it.

Pure functions, tensors in, tensors out; any number of leading dimensions. No ``[heads, N, N]`` array is ever formed:
attention is computed for a chunk of query rows at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

GREY_LEVELS = 256
CHUNK_ELEMENTS = 1 << 20  # attention weights formed at once: 4 MB in float32, so that they stay in a cache


def patch_entropy(image: Tensor, patch_size: int) -> Tensor:
    """Shannon entropy of the grey-level histogram of every patch (VFlowOpt, arXiv 2508.05211, §3.2).

    Args:
        image: ``uint8 [..., H, W, 3]``; rows and columns beyond the last whole patch are ignored.
        patch_size: patch side p, in pixels.

    Returns:
        Bits, ``[..., H // p, W // p]``, between 0 and 8.
    """
    if image.dtype != torch.uint8:
        raise TypeError(f"patch_entropy needs an un-normalised uint8 image, not {image.dtype}.")
    rows, columns = image.shape[-3] // patch_size, image.shape[-2] // patch_size
    whole = image[..., : rows * patch_size, : columns * patch_size, :]
    patches = whole.unflatten(-2, (columns, patch_size)).unflatten(-4, (rows, patch_size)).transpose(-4, -3)
    return grey_entropy(patches.flatten(-3, -2))


def grey_entropy(pixels: Tensor) -> Tensor:
    """Shannon entropy, in bits, of the grey-level histogram of sets of pixels.

    Grey levels are the rounded mean of the channels of *un-normalised* 8-bit pixels; 256 bins, base 2.

    Args:
        pixels: ``uint8 [..., pixels, 3]``.

    Returns:
        ``[...]``, between 0 and 8.
    """
    grey = pixels.float().mean(-1).round().long()
    ones = torch.ones((), dtype=torch.float32, device=pixels.device).expand(grey.shape)
    histogram = torch.zeros(*grey.shape[:-1], GREY_LEVELS, device=pixels.device).scatter_add_(-1, grey, ones)
    bits = torch.special.entr(histogram / grey.shape[-1]).sum(-1)
    return bits / torch.log(torch.tensor(2.0, device=pixels.device))


def attention_received(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Column means of the head-mean softmax attention: how much each token is looked at.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``; heads must be a multiple of key heads (grouped-query attention).
        scaling: factor on the dot products.

    Returns:
        ``[..., N]``, float32, summing to 1.
    """
    everything = torch.full(queries.shape[:-3] + queries.shape[-2:-1], 1 / queries.shape[-2], device=queries.device)
    return weighted_attention(queries, keys, scaling, everything)


def context_relevance(queries: Tensor, keys: Tensor, threshold: float, scaling: float) -> Tensor:
    """VFlowOpt's context relevance (arXiv 2508.05211, §3.2): what the most looked-at tokens look at.

    The query set is every token whose received attention exceeds ``threshold`` times the mean; the relevance is the
    mean of those tokens' attention rows. An empty set falls back to the single most-received token.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``.
        threshold: t, in multiples of the mean received attention.
        scaling: factor on the dot products.

    Returns:
        ``[..., N]``, float32, summing to 1.
    """
    received = attention_received(queries, keys, scaling)
    weights = query_set(received, threshold)
    largest = int((weights > 0).sum(-1).max())  # the one host sync of a map
    rows = received.topk(largest, dim=-1).indices  # a query set is always the most-received tokens
    chosen = queries.gather(-2, rows[..., None, :, None].expand(*queries.shape[:-2], largest, queries.shape[-1]))
    return weighted_attention(chosen, keys, scaling, weights.gather(-1, rows))


def query_set(received: Tensor, threshold: float) -> Tensor:
    """Equal weights, summing to 1, on the tokens that receive more than ``threshold`` times the mean ``[..., N]``."""
    in_set = (received > threshold * received.mean(-1, keepdim=True)).float()
    in_set = in_set.scatter(-1, received.argmax(-1, keepdim=True), 1.0)  # in it anyway, unless the set is empty
    return in_set / in_set.sum(-1, keepdim=True)


def mean_attention(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Head-mean softmax attention ``[..., N, N]``, float32, for callers that read it again and again.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``.
        scaling: factor on the dot products.
    """
    chunks = [attention.mean(-3) for _, attention in _attention_chunks(queries, keys, scaling)]
    return torch.cat(chunks, dim=-2)


def weighted_attention(queries: Tensor, keys: Tensor, scaling: float, weights: Tensor) -> Tensor:
    """Weighted sum, over query rows, of the head-mean softmax attention, in chunks of rows.

    Args:
        queries: ``[..., heads, rows, d]``.
        keys: ``[..., key heads, N, d]``.
        scaling: factor on the dot products.
        weights: ``[..., rows]``.

    Returns:
        ``[..., N]``, float32.
    """
    heads, length = queries.shape[-3], keys.shape[-2]
    weights = (weights.float() / heads).unsqueeze(-2)
    total = torch.zeros(*keys.shape[:-3], 1, length, dtype=torch.float32, device=keys.device)
    for rows, attention in _attention_chunks(queries, keys, scaling):
        every_head = weights[..., rows].expand(*attention.shape[:-3], heads, -1).flatten(-2).unsqueeze(-2)
        total += every_head @ attention.flatten(-3, -2)
    return total.squeeze(-2)


def _attention_chunks(queries: Tensor, keys: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """Softmax attention ``[..., heads, rows, N]`` of one chunk of query rows after the other."""
    heads = queries.shape[-3]
    if keys.shape[-3] != heads:
        keys = keys.repeat_interleave(heads // keys.shape[-3], dim=-3)
    keys = keys.transpose(-1, -2)
    chunk = max(1, CHUNK_ELEMENTS // keys[..., 0, :].numel())
    for start in range(0, queries.shape[-2], chunk):
        rows = slice(start, start + chunk)
        yield rows, (queries[..., rows, :] * scaling @ keys).softmax(-1, dtype=torch.float32)
