"""Recycling against a loop over tokens and cells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from multimodal import FlowpruneError
from multimodal.recycling import Recycled, cells_of, recycle, smallest_cell
from multimodal.recycling import recycle_tokens as recycle_images
from multimodal.testing import oracles

sides = st.integers(1, 9)
cells = st.one_of(st.floats(1, 12), st.sampled_from([1.0, 1.5, 2.0, 3.0, 4 / 3, 7 / 3]))
kinds = st.sampled_from(["positive", "any sign", "ties", "zeros", "negative"])


def tokens(number: int, kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and importance."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(number, 5, generator=generator)
    importance = torch.rand(number, generator=generator) * 0.01
    if kind == "any sign":
        importance = torch.randn(number, generator=generator)
    elif kind == "ties":
        importance = torch.randint(0, 3, (number,), generator=generator).float()
    elif kind == "zeros":
        importance = torch.zeros(number)
    elif kind == "negative":
        importance = -importance
    return features, importance


def grid_places(*grids: tuple[int, int]) -> list[tuple[int, int, int]]:
    return [(grid, row, column) for grid, (h, w) in enumerate(grids) for row in range(h) for column in range(w)]


def number_of_cells(places: list, cell: float) -> int:
    return len({(grid, int(row / cell), int(column / cell)) for grid, row, column in places})


def recycle_tokens(
    features: torch.Tensor, importance: torch.Tensor, grids: list, count: int, cell: float
) -> list[Recycled]:
    """Each of some images."""
    index = torch.arange(importance.shape[1]).expand_as(importance)
    step = recycle_images(importance, index, tuple(grids), count, cell)
    sizes = torch.ones(step.kept.shape) if step.owner is None else step.sizes()
    parts = step.kept, step.apply(features), importance.gather(1, step.kept), sizes
    return [Recycled(*each) for each in zip(*parts, strict=True)]


def assert_same(result: Recycled, expected: list | None) -> None:
    assert expected is not None
    places, features, importance, sizes = zip(*expected, strict=True)
    assert result.kept.tolist() == list(places)
    assert result.sizes.tolist() == list(sizes)
    assert result.importance.tolist() == list(importance)
    np.testing.assert_allclose(result.features.numpy(), np.stack(features), atol=1e-5)


@given(sides, sides, cells, kinds, st.integers(0, 10**6), st.data())
def test_exact_equals_the_loop(rows: int, columns: int, cell: float, kind: str, seed: int, data: st.DataObject) -> None:
    number, places = rows * columns, grid_places((rows, columns))
    count = data.draw(st.integers(number_of_cells(places, cell), number))
    features, importance = tokens(number, kind, seed)
    result = recycle(features, importance, (rows, columns), count / number, cell)
    expected = oracles.recycle_exactly(features.numpy(), importance.numpy(), places, cell, count)
    assert_same(result, expected)
    assert len(result.kept) == count
    assert result.sizes.sum() == number
    alone = result.sizes == 1
    assert torch.equal(result.features[alone], features[result.kept[alone]])


@given(sides, sides, cells, kinds, st.integers(0, 10**6), st.floats(0.02, 1))
def test_released_equals_the_loop(
    rows: int, columns: int, cell: float, kind: str, seed: int, keep_ratio: float
) -> None:
    number, places = rows * columns, grid_places((rows, columns))
    assume(abs(number * keep_ratio % 1 - 0.5) > 1e-6)  # halves may round either way
    assume(number * keep_ratio > 0.5)
    features, importance = tokens(number, kind, seed)
    pruned = round(number * (1 - keep_ratio)) + int(number / cell**2)
    result = recycle(features, importance, (rows, columns), keep_ratio, cell, count="released")
    top = max(number - pruned, 0)
    assert_same(result, oracles.recycle(features.numpy(), importance.numpy(), places, cell, top))
    assert result.sizes.sum() == number


@pytest.mark.parametrize("cell", [1.0, 1.3, 2.0, 2.5, 4.0, 7.0, 100.0])
def test_every_feasible_count_is_met(cell: float) -> None:
    places = grid_places((6, 7))
    features, importance = tokens(42, "positive", seed=3)
    fewest = number_of_cells(places, cell)
    for count in range(1, 43):
        if count < fewest:
            with pytest.raises(FlowpruneError, match=f"cell {cell:g} makes {fewest} cells.*raise"):
                recycle(features, importance, (6, 7), count / 42, cell)
        else:
            assert len(recycle(features, importance, (6, 7), count / 42, cell).kept) == count


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), cells, kinds, st.integers(0, 10**6), st.data())
def test_several_grids_do_not_mix(grids: list, cell: float, kind: str, seed: int, data: st.DataObject) -> None:
    places = grid_places(*grids)
    count = data.draw(st.integers(number_of_cells(places, cell), len(places)))
    features, importance = tokens(len(places), kind, seed)
    [result] = recycle_tokens(features[None], importance[None], grids, count, cell)
    assert_same(result, oracles.recycle_exactly(features.numpy(), importance.numpy(), places, cell, count))


@given(cells, kinds, st.integers(0, 10**6), st.data())
def test_images_of_a_batch_are_independent(cell: float, kind: str, seed: int, data: st.DataObject) -> None:
    grids = [(4, 5), (3, 6)]
    places = grid_places(*grids)
    count = data.draw(st.integers(number_of_cells(places, cell), len(places)))
    images = [tokens(len(places), kind, seed + image) for image in range(6)]
    features, importance = (torch.stack(parts) for parts in zip(*images, strict=True))
    together = recycle_tokens(features, importance, grids, count, cell)
    for image, (own_features, own_importance) in enumerate(images):
        [alone] = recycle_tokens(own_features[None], own_importance[None], grids, count, cell)
        for many, one in zip(together[image], alone, strict=True):
            torch.testing.assert_close(many, one, atol=1e-6, rtol=1e-6)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), cells, st.integers(0, 10**6), st.data())
def test_any_cell_prunes_any_image_to_any_count(grids: list, cell: float, seed: int, data: st.DataObject) -> None:
    """Where a side makes too many cells, the smallest larger one that does not is used; if none is, nothing merges."""
    places = grid_places(*grids)
    count = data.draw(st.integers(1, len(places)))
    features, importance = tokens(len(places), "positive", seed)
    [result] = recycle_tokens(features[None], importance[None], grids, count, cell)
    assert len(result.kept) == count
    if count < len(grids) and number_of_cells(places, cell) > count:
        assert result.kept.tolist() == importance.argsort(descending=True)[:count].sort().values.tolist()
        assert (result.sizes == 1).all()
        return
    used = cell if number_of_cells(places, cell) <= count else smallest_cell(grids, count)
    assert used >= cell
    assert_same(result, oracles.recycle_exactly(features.numpy(), importance.numpy(), places, used, count))


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=3), cells)
def test_cells_by_hand(grids: list, cell: float) -> None:
    found = cells_of(tuple(grids), cell)
    blocks = [(grid, int(row / cell), int(column / cell)) for grid, row, column in grid_places(*grids)]
    assert found.number == len(set(blocks))
    pairs = set(zip(blocks, found.ids.tolist(), strict=True))
    assert len(pairs) == found.number and {number for _, number in pairs} == set(range(found.number))


def test_a_worked_example() -> None:
    """A 2 × 4 grid in two cells; three of eight stay as they are, the others become one token a cell."""
    importance = torch.tensor([9.0, 1, 0, 8, 3, 7, 0, 0])
    features = torch.arange(8.0).unsqueeze(1)
    result = recycle(features, importance, (2, 4), 5 / 8, cell=2.0)
    # left cell: tokens 1 and 4 merge at 4, (1 · 1 + 4 · 3) / 4; right cell: 2, 6, 7 weigh nothing, and merge at 2
    assert result.kept.tolist() == [0, 2, 3, 4, 5]
    assert result.features[:, 0].tolist() == [0, 5, 3, 3.25, 5]
    assert result.importance.tolist() == [9, 0, 8, 3, 7]
    assert result.sizes.tolist() == [1, 3, 1, 2, 1]


def test_the_type_of_the_features_stays() -> None:
    features, importance = tokens(16, "positive", seed=0)
    result = recycle(features.bfloat16(), importance, (4, 4), 0.5, 2.0)
    assert result.features.dtype == torch.bfloat16
    exact = recycle(features, importance, (4, 4), 0.5, 2.0)
    torch.testing.assert_close(result.features.float(), exact.features, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    "grids", [[(12, 12)], [(27, 27), (27, 38)], [(8, 8), (8, 5)], [(1, 30)], [(24, 7), (3, 3), (5, 1)]]
)
def test_smallest_cell_is_feasible_and_nearly_minimal(grids: list) -> None:
    places = grid_places(*grids)
    lengths = {length for grid in grids for length in grid}
    sides = sorted({length / k for length in lengths for k in range(1, length + 1)})
    counted = {side: number_of_cells(places, side) for side in sides}
    _, importance = tokens(len(places), "positive", seed=1)
    for count in range(1, len(places) + 1, 1 + len(places) // 150):
        side = smallest_cell(grids, count)
        if count < len(grids):
            assert side == math.inf
            continue
        assert counted[side] <= count
        assert all(counted[smaller] > count for smaller in sides if smaller < side)
        index = torch.arange(len(places))[None]
        assert recycle_images(importance[None], index, tuple(grids), count, side).kept.shape == (1, count)
