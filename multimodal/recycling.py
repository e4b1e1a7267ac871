"""Recycling: pruned visual tokens merge, cell by cell, into recycled tokens (VFlowOpt, arXiv 2508.05211, §3.3).

The grid is cut into cells of m×m patches (m real); the pruned tokens of each cell become one token, their
importance-weighted mean, at the place of the most important of them. Pure functions; leading dimensions are images.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from multimodal.errors import FlowpruneError

CountRule = Literal["exact", "released"]


class Recycled(NamedTuple):
    """What a recycling step leaves, in token order.

    Args:
        kept: sorted indices of the places that remain ``[..., K]``.
        features: their features, merged where recycled ``[..., K, C]``.
        importance: their importance ``[..., K]``.
        sizes: how many tokens each stands for ``[..., K]``.
    """

    kept: Tensor
    features: Tensor
    importance: Tensor
    sizes: Tensor


class Recycling(NamedTuple):
    """What a recycling step does, decided by importance alone.

    Args:
        kept: sorted indices of the places that remain ``[..., K]``.
        merge: what it does to anything the tokens carry, ``[..., N, C]`` → ``[..., K, C]``.
        importance: of the places that remain ``[..., K]``.
        sizes: how many tokens each stands for ``[..., K]``.
    """

    kept: Tensor
    merge: Callable[[Tensor], Tensor]
    importance: Tensor
    sizes: Tensor


def recycle(
    features: Tensor,
    importance: Tensor,
    grid: tuple[int, int],
    keep_ratio: float,
    cell: float,
    count: CountRule = "exact",
) -> Recycled:
    """Prune one grid of visual tokens and recycle what is pruned.

    Args:
        features: ``[N, C]``, row by row.
        importance: ``[N]``, higher is kept.
        grid: (rows, columns) with rows × columns = N.
        keep_ratio: share of the N tokens that remains, recycled ones included (``exact``), in (0, 1].
        cell: side m of a cell, in patches, real, at least 1.
        count: ``exact``: round(keep_ratio · N) tokens remain, recycled ones included. ``released``: the count of the
            published code, which prunes int(N / m²) more than asked and puts one back for every cell not empty.

    Raises:
        FlowpruneError: more cells than tokens to keep (``exact``).
    """
    rows, columns = grid
    places = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(rows), torch.arange(columns))
    plan = recycle_places(importance, places, max(1, math.floor(keep_ratio * len(places) + 0.5)), cell, count)
    return Recycled(plan.kept, plan.merge(features), plan.importance, plan.sizes)


def recycle_places(importance: Tensor, places: Tensor, target: int, cell: float, count: CountRule) -> Recycling:
    """:func:`recycle` for tokens of several grids, and for several images of one layout at once.

    Args:
        importance: ``[..., N]``.
        places: (grid, row, column) of each token ``[N, 3]``, on the CPU.
        target: tokens to remain in each image (``released``: before its corrections).
        cell, count: as in :func:`recycle`. With ``released``, images may differ in count: pass them one by one.
    """
    ids = cell_ids(places, cell)
    cells = Cells(ids.to(importance.device), int(ids.max()) + 1)
    if count == "released":
        top = max(target - int(len(places) / cell**2), 0)
        return merge_cells(importance, cells, top, None)
    if cells.number > target:
        raise FlowpruneError(
            f"recycling_cell {cell:g} makes {cells.number} cells, more than the {target} tokens the step keeps: "
            "raise recycling_cell or the step's keep_ratio."
        )
    return merge_cells(importance, cells, exact_top(importance, cells, target), target)


class Cells(NamedTuple):
    """The cell of each token ``[N]`` and how many cells there are."""

    ids: Tensor
    number: int


def cell_ids(places: Tensor, cell: float) -> Tensor:
    """Number the m×m cells of every grid.

    Args:
        places: (grid, row, column) of each token ``[N, 3]``.
        cell: side m of a cell, in patches.

    Returns:
        A dense id in 0 .. cells − 1 for each token ``[N]``.
    """
    blocks = (places[:, 1:].double() / cell).floor().long()
    rows, columns = (blocks.amax(0) + 1).tolist()
    numbers = (places[:, 0] * rows + blocks[:, 0]) * columns + blocks[:, 1]
    return torch.unique(numbers, return_inverse=True)[1]


def smallest_cell(grids: Sequence[tuple[int, int]], count: int) -> float:
    """A cell side whose cells, over all grids, are at most ``count``, as small as length / k allows; inf if none is."""
    lengths = {length for grid in grids for length in grid}
    for side in sorted({length / k for length in lengths for k in range(1, length + 1)}):
        if sum(_cells_along(rows, side) * _cells_along(columns, side) for rows, columns in grids) <= count:
            return side
    return math.inf


def _cells_along(length: int, side: float) -> int:
    return math.floor((length - 1) / side) + 1


def exact_top(importance: Tensor, cells: Cells, count: int) -> Tensor:
    """How many of the most important tokens to keep so that, with the recycled ones, exactly ``count`` remain.

    With k tokens kept, k + (cells with a pruned member) remain; that grows by 0 or 1 as k grows by 1, so every count
    from the number of cells up to N is met. All k are evaluated at once from each cell's least important member.

    Args:
        importance: ``[..., N]``.
        cells: the cells of the N tokens, at most ``count``.
        count: tokens to remain, at most N.

    Returns:
        k ``[..., 1]``.
    """
    rank = _ranks(importance)
    last_rank = torch.full((*rank.shape[:-1], cells.number), -1, device=rank.device).scatter_reduce(
        -1, cells.ids.expand_as(rank), rank, "amax"
    )
    ends_at = torch.zeros_like(rank).scatter_add(-1, last_rank, torch.ones_like(last_rank))
    k = torch.arange(rank.shape[-1], device=rank.device)
    # a cell has a pruned member as long as its least important member's rank is at least k
    remaining = k + cells.number - (ends_at.cumsum(-1) - ends_at)
    return (remaining < count).sum(-1, keepdim=True)


def _ranks(importance: Tensor) -> Tensor:
    order = importance.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(-1, order, places)


def merge_cells(importance: Tensor, cells: Cells, top: Tensor | int, count: int | None) -> Recycling:
    """Keep the ``top`` most important tokens and merge the others, cell by cell.

    Merging weights are the importances, negative ones counted as 0; a cell of none but zeros is averaged plainly.

    Args:
        importance: ``[..., N]``.
        cells: the cells of the N tokens.
        top: how many tokens to keep, per image ``[..., 1]`` or the same for all.
        count: how many tokens remain in every image, if known (no host sync then).
    """
    rank = _ranks(importance)
    pruned = rank >= top
    number, ids = cells.number, cells.ids.expand_as(rank)

    first_rank = torch.full((*rank.shape[:-1], number), rank.shape[-1], device=rank.device).scatter_reduce(
        -1, ids, rank.where(pruned, rank.shape[-1]), "amin"
    )
    represents = pruned & (rank == first_rank.gather(-1, ids))
    remains = ~pruned | represents

    weight = importance.float().clamp(min=0) * pruned
    total = _sum_by_cell(weight, ids, number)
    plain = total.gather(-1, ids) <= torch.finfo(torch.float32).tiny
    weight = torch.where(plain, pruned.float(), weight)
    total = _sum_by_cell(weight, ids, number)
    share = weight / total.gather(-1, ids).clamp(min=torch.finfo(torch.float32).tiny)

    by_cell = torch.zeros(*share.shape[:-1], number, share.shape[-1], device=share.device)
    by_cell = by_cell.scatter(-2, ids.unsqueeze(-2), share.unsqueeze(-2))
    sizes = _sum_by_cell(pruned.float(), ids, number)

    count = int(remains.sum(-1).max()) if count is None else count
    kept = remains.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :count]
    is_recycled = represents.gather(-1, kept)
    cell_of_kept = ids.gather(-1, kept)
    kept_sizes = torch.where(is_recycled, sizes.gather(-1, cell_of_kept), 1.0)
    merge = partial(_merged, kept, is_recycled, cell_of_kept, by_cell)
    return Recycling(kept, merge, importance.gather(-1, kept), kept_sizes)


def _merged(kept: Tensor, is_recycled: Tensor, cell_of_kept: Tensor, by_cell: Tensor, features: Tensor) -> Tensor:
    wide = (*kept.shape, features.shape[-1])
    merged = by_cell.to(features.dtype) @ features
    return torch.where(
        is_recycled.unsqueeze(-1),
        merged.gather(-2, cell_of_kept.unsqueeze(-1).expand(wide)),
        features.gather(-2, kept.unsqueeze(-1).expand(wide)),
    )


def _sum_by_cell(values: Tensor, ids: Tensor, number: int) -> Tensor:
    return torch.zeros(*values.shape[:-1], number, device=values.device).scatter_add(-1, ids, values)
