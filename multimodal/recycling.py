"""Recycling: pruned visual tokens merge, cell by cell, into recycled tokens (VFlowOpt, arXiv 2508.05211, §3.3).

A merging rule that any method with a score can use. The grid is cut into cells of m×m patches (m real); the pruned
tokens of each cell become one token, their importance-weighted mean, at the index of the most important of them. Pure
functions; leading dimensions are images.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.errors import FlowpruneError
from multimodal.ranking import highest, ranked
from multimodal.selection import Selection

CountRule = Literal["exact", "released"]
Grids = tuple[tuple[int, int], ...]
TINY = 1e-30


class Recycled(NamedTuple):
    """What a recycling step leaves of one image, in token order.

    Args:
        kept: sorted indices of the tokens that remain ``[K]``.
        features: their features, merged where recycled ``[K, C]``.
        importance: their importance ``[K]``.
        sizes: how many tokens each stands for ``[K]``.
    """

    kept: Tensor
    features: Tensor
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
    tokens = grid[0] * grid[1]
    target = max(1, math.floor(keep_ratio * tokens + 0.5))
    if count == "exact" and (cells := cells_in((grid,), cell)) > target:
        raise FlowpruneError(
            f"cell {cell:g} makes {cells} cells, more than the {target} tokens to keep: raise cell or keep_ratio."
        )
    index = torch.arange(tokens, device=features.device).unsqueeze(0)
    step = recycle_tokens(importance.unsqueeze(0), index, (grid,), target, cell, count)
    sizes = step.sizes()
    assert sizes is not None
    return Recycled(step.kept[0], step.apply(features.unsqueeze(0))[0], importance[step.kept[0]], sizes[0])


def recycle_tokens(
    importance: Tensor, index: Tensor, grids: Grids, count: int, cell: float, rule: CountRule = "exact"
) -> Selection:
    """:func:`recycle` for tokens of several grids, and for several images of one layout at once.

    Args:
        importance: ``[images, n]``.
        index: which of the layout's patch tokens they are ``[images, n]``.
        grids: of the layout.
        count: tokens to remain in each image (``released``: before its corrections).
        cell: side m of a cell; with ``exact``, the nearest that fits is used (:func:`cells_of`).
        rule: as in :func:`recycle`. With ``released``, images may differ in count: pass them one by one.
    """
    cells = cells_of(grids, cell, count if rule == "exact" else None)
    if cells is None:
        return Selection(highest(importance, count))
    ids = constant(_cell_ids, importance.device, grids, cell, count if rule == "exact" else None)[index]
    rank = _ranks(importance)
    if rule == "released":
        top = torch.tensor([[max(count - int(index.shape[1] / cell**2), 0)]], device=importance.device)
        return _merge(importance, rank, ids, cells.number, top, None)
    return _merge(importance, rank, ids, cells.number, exact_top(rank, ids, cells.number, count), count)


class Cells(NamedTuple):
    """The cell of each of a layout's patch tokens ``[N]``, on the CPU, and how many cells there are."""

    ids: Tensor
    number: int


@lru_cache(maxsize=1024)
def cells_of(grids: Grids, cell: float, count: int | None = None) -> Cells | None:
    """The cells of a layout's grids, at most ``count``.

    A side that makes more cells than ``count`` is replaced by the smallest one, among every length over a whole number,
    that does not; where even one cell a grid is too many, there are none (None): nothing is recycled then.

    Args:
        grids: (rows, columns) of each grid.
        cell: side m of a cell, in patches.
        count: of tokens to keep; None: any number of cells will do.
    """
    if count is not None and cells_in(grids, cell) > count:
        cell = smallest_cell(grids, count)
        if math.isinf(cell):
            return None
    ids, before = [], 0
    for rows, columns in grids:
        along = _cells_along(columns, cell)
        row = torch.tensor([int(row / cell) for row in range(rows)], device="cpu")
        column = torch.tensor([int(column / cell) for column in range(columns)], device="cpu")
        ids.append((before + row.unsqueeze(1) * along + column).flatten())
        before += _cells_along(rows, cell) * along
    return Cells(torch.cat(ids), before)


def _cell_ids(grids: Grids, cell: float, count: int | None) -> Tensor:
    cells = cells_of(grids, cell, count)
    assert cells is not None
    return cells.ids


def cells_in(grids: Sequence[tuple[int, int]], cell: float) -> int:
    """How many cells of a side the grids have."""
    return sum(_cells_along(rows, cell) * _cells_along(columns, cell) for rows, columns in grids)


def smallest_cell(grids: Sequence[tuple[int, int]], count: int) -> float:
    """A cell side whose cells, over all grids, are at most ``count``, as small as length / k allows; inf if none is."""
    lengths = {length for grid in grids for length in grid}
    for side in sorted({length / k for length in lengths for k in range(1, length + 1)}):
        if cells_in(grids, side) <= count:
            return side
    return math.inf


def _cells_along(length: int, side: float) -> int:
    return math.floor((length - 1) / side) + 1


def exact_top(rank: Tensor, ids: Tensor, cells: int, count: int) -> Tensor:
    """How many of the most important tokens to keep so that, with the recycled ones, exactly ``count`` remain.

    With k tokens kept, k + (cells with a pruned member) remain; that grows by 0 or 1 as k grows by 1, so every count
    from the number of cells up to n is met. All k are evaluated at once from each cell's least important member.

    Args:
        rank: of each token by importance, 0 the most important ``[images, n]``.
        ids: its cell ``[images, n]``.
        cells: their number, at most ``count``.
        count: tokens to remain, at most n.

    Returns:
        k ``[images, 1]``.
    """
    images, tokens = rank.shape
    last_rank = torch.full((images, cells), tokens, device=rank.device)  # an empty cell: no k prunes from it
    last_rank = last_rank.scatter_reduce(1, ids, rank, "amax", include_self=False)
    k = torch.arange(tokens + 1, device=rank.device).expand(images, -1)
    # a cell has a pruned member as long as its least important member's rank is at least k
    ends = torch.searchsorted(last_rank.sort(1).values, k.contiguous())
    with_pruned = cells - ends - (last_rank == tokens).sum(1, keepdim=True)
    return (k + with_pruned < count).sum(1, keepdim=True)


def _ranks(importance: Tensor) -> Tensor:
    return ranked(importance).argsort(dim=-1)


def _merge(importance: Tensor, rank: Tensor, ids: Tensor, cells: int, top: Tensor, count: int | None) -> Selection:
    """Keep the ``top`` most important tokens and merge the others, cell by cell.

    Merging weights are the importances, negative ones counted as 0; a cell of none but zeros is averaged plainly.

    Args:
        importance, rank, ids: of the tokens ``[images, n]``.
        cells: their number.
        top: how many tokens to keep ``[images, 1]``.
        count: how many tokens remain in every image; None: it is counted, which waits for the device.
    """
    images, tokens = rank.shape
    stays = rank < top
    pruned = ~stays
    first_rank = torch.full((images, cells), tokens, device=rank.device).scatter_reduce(
        1, ids, rank.masked_fill(stays, tokens), "amin"
    )
    represents = rank == first_rank.gather(1, ids)
    remains = stays | represents
    count = int(remains.sum(-1).max()) if count is None else count
    kept = remains.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :count]
    slot = remains.cumsum(-1) - 1
    # the slot of a cell's representative is found where that token is
    slots = torch.zeros_like(first_rank).scatter_reduce(1, ids, slot * represents, "amax")
    owner = slot.where(stays, slots.gather(1, ids))

    weight = (importance.float().clamp(min=0) + TINY) * pruned  # so that a cell of zeros is averaged plainly
    total = torch.zeros(images, cells, dtype=torch.float32, device=rank.device).scatter_add(1, ids, weight)
    return Selection(kept, owner, (weight / total.gather(1, ids)).masked_fill(stays, 1.0))
