"""The batch between two steps: gathering, left padding, masks."""

import pytest
import torch

from multimodal import FlowpruneError
from multimodal.sequence import Stage, causal_mask, gather_positions, stage_mask

F, T = False, True
LOWEST = torch.finfo(torch.float32).min


def first_stage() -> Stage:
    return Stage.unpruned(torch.tensor([[F, F, T, T, T, T], [T, T, T, T, T, T]]), (4, 6))


def second_stage() -> Stage:
    """Row 0 keeps places 2, 4, 5 of 2 .. 5, row 1 keeps 1 and 5 of 0 .. 5."""
    keep = torch.tensor([[F, F, T, F, T, T], [F, T, F, F, F, T]])
    bias = torch.arange(12.0).view(2, 6)
    return first_stage().keep(keep, (3, 2), bias, first=False)


def test_unpruned() -> None:
    stage = first_stage()
    assert stage.padded and not Stage.unpruned(torch.ones(2, 3).bool(), (3, 3)).padded
    assert stage.index.tolist() == stage.gather.tolist() == stage.from_first.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_keep_pads_on_the_left() -> None:
    stage = second_stage()
    assert stage.valid.tolist() == [[T, T, T], [F, T, T]]
    assert stage.index.tolist() == stage.from_first.tolist() == [[2, 4, 5], [0, 1, 5]]
    assert stage.bias is not None and stage.bias.tolist() == [[2, 4, 5], [0, 7, 11]]
    assert stage.padded


def test_keep_twice_composes() -> None:
    keep = torch.tensor([[F, T, T], [F, T, F]])
    third = second_stage().keep(keep, (2, 1), None, first=False)
    assert third.gather.tolist() == [[1, 2], [0, 1]]
    assert third.index.tolist() == [[4, 5], [0, 1]]
    assert third.valid.tolist() == [[T, T], [F, T]]
    assert third.bias is None
    as_first = second_stage().keep(keep, (2, 1), None, first=True)
    assert as_first.from_first.tolist() == [[0, 1], [0, 1]]
    hidden = torch.arange(6.0).view(2, 3, 1)
    assert third.rows(hidden)[:, :, 0].tolist() == [[1, 2], [3, 4]]  # padded places hold anything


def test_places_after_are_where_keep_puts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    stage = first_stage()
    for _ in range(20):
        keep = (torch.rand(2, 6, generator=generator) < 0.6) & stage.valid
        keep[:, -1] = True
        lengths = tuple(keep.sum(1).tolist())
        after, places = stage.keep(keep, lengths, None, first=False), stage.places_after(keep, lengths)
        for row, column in keep.nonzero().tolist():
            assert after.gather[row, places[row, column]] == column


def test_without_last() -> None:
    stage = second_stage().without_last(1)
    assert stage.index.tolist() == [[2, 4], [0, 1]]
    assert stage.lengths == (2, 1) and stage.padded


def test_gather_positions_of_several_axes() -> None:
    places = torch.tensor([[0, 2], [1, 2]])
    axes = torch.tensor([[[5, 6, 7]], [[1, 1, 2]]])
    assert gather_positions(axes, places).tolist() == [[[5, 7], [6, 7]], [[1, 2], [1, 2]]]


def expected_seen(new: int, queries: int) -> torch.Tensor:
    """What each query of the second stage sees, by hand: itself and what is before it, no padding."""
    keys = 3 + new
    seen = torch.zeros(2, queries, keys, dtype=torch.bool)
    for row in range(2):
        for query in range(queries):
            for key in range(keys):
                seen[row, query, key] = key <= keys - queries + query and not (row == 1 and key == 0)
    return seen


@pytest.mark.parametrize(("new", "queries"), [(0, 3), (1, 1), (4, 2)])
@pytest.mark.parametrize("form", ["additive", "boolean", "none"])
def test_stage_mask_equals_a_mask_made_for_the_stage(new: int, queries: int, form: str) -> None:
    stage, first = second_stage(), first_stage()
    valid = torch.cat([first.valid, torch.ones(2, new, dtype=torch.bool)], 1)
    mask = causal_mask(valid, 6 if new == 0 else queries, torch.float32)
    given = {"additive": mask, "boolean": mask == 0, "none": None}[form]
    result = stage_mask(given, stage, 6, new, torch.zeros(2, queries, 1))
    assert result is not None
    seen = (result if result.dtype == torch.bool else result == 0)[:, 0]
    real = torch.ones(2, queries, dtype=torch.bool) if new else stage.valid  # padded queries may see anything
    assert torch.equal(seen[real], expected_seen(new, queries)[real])
    assert form != "boolean" or seen.any(-1).all()  # or some kernels give NaN


def test_stage_mask_of_two_dimensions() -> None:
    valid = torch.cat([first_stage().valid, torch.ones(2, 2, dtype=torch.bool)], 1)
    result = stage_mask(valid.long(), second_stage(), 6, 2, torch.zeros(2, 1, 1))
    assert result.tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_stage_mask_carries_the_bias() -> None:
    bias = torch.tensor([[0.0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10]])
    mask = causal_mask(first_stage().valid, 6, torch.float32, bias)
    result = stage_mask(mask, second_stage(), 6, 0, torch.zeros(2, 3, 1))
    assert result[0, 0].tolist() == [[1, LOWEST, LOWEST], [1, 3, LOWEST], [1, 3, 4]]
    assert result[1, 0, 1:].tolist() == [[LOWEST, 6, LOWEST], [LOWEST, 6, 10]]


def test_stage_mask_without_padding_needs_none() -> None:
    stage = Stage.unpruned(torch.ones(2, 3).bool(), (3, 3))
    keep = torch.tensor([[T, F, T], [F, T, T]])
    assert stage_mask(None, stage.keep(keep, (2, 2), None, first=False), 3, 0, torch.zeros(2, 2, 1)) is None


@pytest.mark.parametrize("mask", [object(), torch.ones(2, 3, 3)])
def test_other_masks_are_refused(mask: object) -> None:
    with pytest.raises(FlowpruneError, match="attn_implementation='sdpa'"):
        stage_mask(mask, second_stage(), 6, 0, torch.zeros(2, 3, 1))
