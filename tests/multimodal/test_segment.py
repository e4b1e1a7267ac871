"""The batch between two steps: gathering and left padding."""

import torch

from multimodal.runtime.segment import Segment, gather_positions, gather_tokens

F, T = False, True


def first_segment() -> Segment:
    return Segment.unpruned(torch.tensor([[F, F, T, T, T, T], [T, T, T, T, T, T]]), (4, 6))


def second_segment() -> tuple[Segment, torch.Tensor]:
    """Row 0 keeps 2, 4, 5 of 2 .. 5, row 1 keeps 1 and 5 of 0 .. 5, told in any order."""
    left = torch.tensor([[5, 2, -1, 4], [5, -1, 1, -1]])
    return first_segment().next(left, (3, 2), torch.arange(12.0).view(2, 6))


def test_unpruned() -> None:
    segment = first_segment()
    assert segment.padded and not Segment.unpruned(torch.ones(2, 3).bool(), (3, 3)).padded
    assert segment.index.tolist() == segment.gatherable.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_a_step_pads_on_the_left() -> None:
    segment, gather = second_segment()
    assert segment.valid.tolist() == [[T, T, T], [F, T, T]]
    assert segment.index.tolist() == [[2, 4, 5], [-1, 1, 5]]
    assert gather.tolist() == segment.gatherable.tolist() == [[2, 4, 5], [0, 1, 5]]
    assert segment.bias is not None and segment.bias.tolist() == [[2, 4, 5], [6, 7, 11]]
    assert segment.padded and segment.lengths == (3, 2)


def test_steps_compose() -> None:
    segment, _ = second_segment()
    third, gather = segment.next(torch.tensor([[4, 5], [5, -1]]), (2, 1), None)
    assert third.index.tolist() == [[4, 5], [-1, 5]]
    assert gather.tolist()[0] == [1, 2] and gather.tolist()[1][1] == 2
    assert third.bias is None
    hidden = torch.arange(6.0).view(2, 3, 1)
    assert gather_tokens(hidden, gather)[:, :, 0].tolist()[0] == [1, 2]


def test_slots_are_where_tokens_stand() -> None:
    generator = torch.Generator().manual_seed(0)
    segment = first_segment()
    for _ in range(20):
        keep = (torch.rand(2, 6, generator=generator) < 0.6) & segment.valid
        keep[:, -1] = True
        lengths = tuple(keep.sum(1).tolist())
        index = torch.arange(6).expand(2, -1).where(keep, -1)
        after, _ = segment.next(index, lengths, None)
        for row in range(2):
            own = keep[row].nonzero()[:, 0]
            slots = after.slots(own[None], torch.tensor([row]))
            assert after.index[row, slots[0]].tolist() == own.tolist()


def test_keys_count_in_the_conversation() -> None:
    segment, _ = second_segment()
    keys = segment.keys(before=10)
    assert keys.index.tolist()[0] == [12, 14, 15] and keys.padded
    assert torch.equal(keys.valid, segment.valid) and keys.bias is segment.bias


def test_gather_positions_of_several_axes() -> None:
    slots = torch.tensor([[0, 2], [1, 2]])
    axes = torch.tensor([[[5, 6, 7]], [[1, 1, 2]]])
    assert gather_positions(axes, slots).tolist() == [[[5, 7], [6, 7]], [[1, 2], [1, 2]]]
    assert gather_positions(axes[0], slots).tolist() == [[5, 7], [6, 7]]


def test_gather_tokens() -> None:
    for rows in (1, 2):
        values, slots = torch.randn(1, 4, 3), torch.tensor([[3, 0], [1, 1]])[:rows]
        gathered = gather_tokens(values, slots)
        for row in range(rows):
            for place in range(2):
                assert torch.equal(gathered[row, place], values[0, slots[row, place]])
        axes = torch.stack([values, -values])
        assert torch.equal(gather_tokens(axes, slots), torch.stack([gathered, -gathered]))
