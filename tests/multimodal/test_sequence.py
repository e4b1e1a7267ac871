"""The batch between two steps: gathering and left padding."""

import torch

from multimodal.sequence import Stage, gather_positions, gather_tokens

F, T = False, True


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


def test_gather_tokens() -> None:
    values, places = torch.randn(1, 4, 3), torch.tensor([[3, 0], [1, 1]])
    gathered = gather_tokens(values, places)
    for row, place in ((row, place) for row in range(2) for place in range(2)):
        assert torch.equal(gathered[row, place], values[0, places[row, place]])
