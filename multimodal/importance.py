"""Importance statistics of the vision tower: what an image contains (entropy) and what attention says about it.

Pure functions, tensors in, tensors out; any number of leading dimensions. No ``[heads, N, N]`` array is ever formed:
attention is computed for a chunk of query rows at a time.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from multimodal.constants import constant, integers

GREY_LEVELS = 256
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 26}  # attention weights formed at once: near a cache, or few launches
EXACT_SETS = 64  # up to this size a ranked table holds every query set, beyond it one in every 2.5 %
GROWTH = 1.025
BETA = 0.4  # of its weight that a calibrated sink keeps


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
        pixels: ``[..., pixels, 3]``, of any type.

    Returns:
        ``[...]``, between 0 and 8.
    """
    grey = pixels.float().mean(-1).round().long()
    share = torch.full((), 1 / grey.shape[-1], dtype=torch.float32, device=pixels.device).expand(grey.shape)
    zeros = torch.zeros(*grey.shape[:-1], GREY_LEVELS, dtype=torch.float32, device=pixels.device)
    return torch.special.entr(zeros.scatter_add_(-1, grey, share)).sum(-1) / math.log(2)


def attention_received(queries: Tensor, keys: Tensor, scaling: float, sinks: Tensor | None = None) -> Tensor:
    """Column means of the head-mean softmax attention: how much each token is looked at.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``; heads must be a multiple of key heads (grouped-query attention).
        scaling: factor on the dot products.
        sinks: see :func:`attention_chunks`.

    Returns:
        ``[..., N]``, float32, summing to 1.
    """
    parts = [attention.sum((-3, -2)) for attention in attention_chunks(queries, keys, scaling, sinks)]
    return functools.reduce(torch.add, parts) / (queries.shape[-3] * queries.shape[-2])


def context_relevance(
    queries: Tensor, keys: Tensor, threshold: float, scaling: float, sinks: Tensor | None = None
) -> Tensor:
    """VFlowOpt's context relevance (arXiv 2508.05211, §3.2): what the most looked-at tokens look at.

    The query set is every token whose received attention exceeds ``threshold`` times the mean; the relevance is the
    mean of those tokens' attention rows. An empty set falls back to the single most-received token.

    Args:
        queries: ``[..., heads, N, d]``.
        keys: ``[..., key heads, N, d]``.
        threshold: t, in multiples of the mean received attention.
        scaling: factor on the dot products.
        sinks: where the rows are calibrated (:func:`attention_chunks`); the query set is not.

    Returns:
        ``[..., N]``, float32, summing to 1.
    """
    received = attention_received(queries, keys, scaling)
    values, rows = _most_received(received, largest_query_set(received.shape[-1], threshold))
    weights = (values > threshold * received.mean(-1, keepdim=True)).float()
    weights[..., 0] = 1.0  # in the set anyway, unless it is empty
    return weighted_attention(_rows(queries, rows), keys, scaling, weights / weights.sum(-1, keepdim=True), sinks)


def largest_query_set(tokens: int, threshold: float) -> int:
    """How many tokens can receive more than ``threshold`` times the mean, at most: shapes are known beforehand."""
    return tokens if threshold <= 1 else math.ceil(tokens / threshold)


def query_set_sizes(tokens: int, threshold: float) -> list[int]:
    """Sizes of query sets that a table of thresholds from ``threshold`` on holds: all small ones, then ever fewer."""
    largest, sizes = largest_query_set(tokens, threshold), [1]
    while sizes[-1] < largest:
        sizes.append(min(max(sizes[-1] + 1, int(sizes[-1] * GROWTH) if sizes[-1] > EXACT_SETS else 0), largest))
    return sizes


def _set_sizes(tokens: int, threshold: float) -> Tensor:
    return integers(*query_set_sizes(tokens, threshold))


def ranked_relevance(
    queries: Tensor, keys: Tensor, scaling: float, received: Tensor, threshold: float, sinks: Tensor | None = None
) -> Tensor:
    """Context relevance for every threshold from a lowest one on: a table by the query set's size.

    Args:
        queries, keys, scaling: as in :func:`context_relevance`.
        received: :func:`attention_received` of them ``[..., N]``.
        threshold: the lowest.
        sinks: see :func:`attention_chunks`; ``received`` is not calibrated.

    Returns:
        Mean attention row of the s most-received tokens, for each s of :func:`query_set_sizes` ``[..., sizes, N]``.
    """
    sizes = query_set_sizes(received.shape[-1], threshold)
    _, order = _most_received(received, sizes[-1])
    table, total, first = [], torch.zeros_like(received).unsqueeze(-2), 0
    for attention in attention_chunks(_rows(queries, order), keys, scaling, sinks):
        sums = total + attention.mean(-3).cumsum(-2)
        last = first + sums.shape[-2]
        table += [sums[..., size - 1 - first, :] / size for size in sizes if first < size <= last]
        total, first = sums[..., -1:, :], last
    return torch.stack(table, dim=-2)


def relevance_from_table(table: Tensor, received: Tensor, lowest: float, threshold: float) -> Tensor:
    """Context relevance ``[..., N]`` at a threshold, read from :func:`ranked_relevance`'s table.

    Exact where the table holds the query set's size; else the rows between two sizes count as their mean.

    Args:
        table: ``[..., sizes, N]``.
        received: what all N tokens receive ``[..., N]``.
        lowest: the table's lowest threshold.
        threshold: the one asked for, not below it.
    """
    sizes = constant(_set_sizes, received.device, received.shape[-1], lowest)
    size = (received > threshold * received.mean(-1, keepdim=True)).sum(-1, keepdim=True).clamp(min=1)
    upper = torch.searchsorted(sizes, size)
    lower = torch.where(sizes[upper] == size, upper, upper - 1)
    small, large = sizes[lower], sizes[upper]
    beyond = (size - small) / (large - small).clamp(min=1)
    sums = _table_row(table, lower) * small, _table_row(table, upper) * large
    return torch.lerp(sums[0], sums[1], beyond.float()) / size


def weighted_attention(
    queries: Tensor, keys: Tensor, scaling: float, weights: Tensor, sinks: Tensor | None = None
) -> Tensor:
    """Weighted sum, over query rows, of the head-mean softmax attention, in chunks of rows.

    Args:
        queries: ``[..., heads, rows, d]``.
        keys: ``[..., key heads, N, d]``.
        scaling: factor on the dot products.
        weights: ``[..., rows]``.
        sinks: see :func:`attention_chunks`.

    Returns:
        ``[..., N]``, float32.
    """
    parts, first = [], 0
    for attention in attention_chunks(queries, keys, scaling, sinks):
        own = weights[..., first : first + attention.shape[-2]].float()
        parts.append((attention.mean(-3) * own.unsqueeze(-1)).sum(-2))
        first += attention.shape[-2]
    return functools.reduce(torch.add, parts)


def chosen_attention(
    queries: Tensor, keys: Tensor, scaling: float, mask: Tensor, softcap: float | None = None
) -> Tensor:
    """Softmax attention of a few query rows under a mask ``[B, heads, rows, N]``, float32.

    Args:
        queries: ``[B, heads, rows, d]``.
        keys: ``[B, key heads, N, d]``.
        scaling: factor on the dot products.
        mask: added to the logits ``[B, 1, rows, N]``.
        softcap: bound of the logits, which tanh keeps to; None: none.
    """
    key_heads, rows = keys.shape[1], queries.shape[2]
    grouped = (queries * scaling).unflatten(1, (key_heads, -1)).flatten(2, 3)  # one product a key head
    logits = (grouped @ keys.transpose(-1, -2)).float().unflatten(2, (-1, rows)).flatten(1, 2)
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    return (logits + mask).softmax(-1)


def _most_received(received: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the tokens that receive most ``[..., number]``; ties go to the earlier token."""
    values, indices = received.sort(dim=-1, descending=True, stable=True)
    return values[..., :number], indices[..., :number]


def _rows(queries: Tensor, rows: Tensor) -> Tensor:
    index = rows[..., None, :, None].expand(*queries.shape[:-2], rows.shape[-1], queries.shape[-1])
    return queries.gather(-2, index)


def _table_row(table: Tensor, row: Tensor) -> Tensor:
    return table.gather(-2, row.unsqueeze(-1).expand(*row.shape, table.shape[-1])).squeeze(-2)


def _all_heads(queries: Tensor, keys: Tensor) -> Tensor:
    heads = queries.shape[-3]
    return keys if keys.shape[-3] == heads else keys.repeat_interleave(heads // keys.shape[-3], dim=-3)


def attention_chunks(
    queries: Tensor, keys: Tensor, scaling: float, sinks: Tensor | None = None, causal: bool = False
) -> Iterator[Tensor]:
    """Softmax attention ``[..., heads, rows, N]`` of one chunk of query rows after the other, float32.

    Args:
        queries: ``[..., heads, rows, d]``.
        keys: ``[..., key heads, N, d]``.
        scaling: factor on the dot products.
        sinks: where attention is calibrated ``[..., heads, N]`` (:func:`calibrated`); None: nowhere.
        causal: whether query i sees no token after i.
    """
    keys = _all_heads(queries, keys).transpose(-1, -2)
    elements = CHUNK_ELEMENTS.get(queries.device.type, CHUNK_ELEMENTS["cpu"])
    first, tokens = 0, torch.arange(keys.shape[-1], device=keys.device)
    for rows in (queries * scaling).split(max(1, elements // keys[..., 0, :].numel()), dim=-2):
        logits = rows @ keys
        if causal:
            later = tokens > tokens[first : first + rows.shape[-2]].unsqueeze(-1)
            logits = logits.masked_fill(later, -torch.inf)
        first += rows.shape[-2]
        attention = logits.softmax(-1, dtype=torch.float32)
        yield attention if sinks is None else calibrated(attention, sinks)


def calibrated(attention: Tensor, sinks: Tensor) -> Tensor:
    """ACT (ICML 2024, arXiv 2406.15765): sinks keep β of their weight, the others share the rest in proportion.

    Args:
        attention: rows ``[..., heads, rows, N]`` that sum to 1.
        sinks: True at the sinks of each head ``[..., heads, N]``.
    """
    column = sinks.unsqueeze(-2)
    taken = (attention * column).sum(-1, keepdim=True)
    others = (1 - taken).clamp(min=torch.finfo(attention.dtype).eps)
    return attention * torch.where(column, BETA, 1 + (1 - BETA) * taken / others)
