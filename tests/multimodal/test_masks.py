"""Masks of pruned layers, against the unpruned sequence walked through token by token."""

from itertools import product

import pytest
import torch
from torch import Tensor

from multimodal.runtime.masks import Keys, attention_mask

LOWEST = torch.finfo(torch.float32).min
ROWS, LENGTH = 3, 24


def random_keys(generator: torch.Generator, biased: bool) -> tuple[Keys, Tensor]:
    """Some tokens of an unpruned batch of ``LENGTH``, padded on the left, and which block each place is in."""
    counts = torch.randint(6, 14, (ROWS,), generator=generator).tolist()
    longest = max(counts)
    index, valid = torch.zeros(ROWS, longest, dtype=torch.long), torch.zeros(ROWS, longest, dtype=torch.bool)
    for row, count in enumerate(counts):
        index[row, longest - count :] = torch.randperm(LENGTH, generator=generator)[:count].sort().values
        valid[row, longest - count :] = True
    bias = torch.randn(ROWS, longest, generator=generator) if biased else None
    blocks = torch.arange(LENGTH).div(5, rounding_mode="floor").repeat(ROWS, 1)
    blocks[torch.rand(ROWS, LENGTH, generator=generator) < 0.3] = -1
    return Keys(index, valid, padded=True, bias=bias), blocks


def sees(query: int, key: int, blocks: list[int], window: int | None, cut: bool) -> bool:
    """By hand, in places of the unpruned sequence."""
    near = window is None or query - key < window
    together = blocks[query] >= 0 and blocks[query] == blocks[key]
    if together:
        return near or not cut
    return near and key <= query


@pytest.mark.parametrize("window", [None, 1, 4, 9, LENGTH])
@pytest.mark.parametrize(("blocked", "cut"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_mask_equals_a_loop(window: int | None, blocked: bool, cut: bool, biased: bool) -> None:
    keys, blocks = random_keys(torch.Generator().manual_seed(3), biased)
    length = keys.index.shape[1]
    for queries in (1, 3, length):
        own = blocks.gather(1, keys.index)[:, -queries:] if blocked else None
        places = keys.index[:, -queries:]
        mask = attention_mask(keys, places, torch.float32, window, own, own, cut)
        assert mask.shape == (ROWS, 1, queries, length)
        for row, query, key in product(range(ROWS), range(queries), range(length)):
            place = length - queries + query
            if not keys.valid[row, place]:
                continue  # a padded query may see anything that is finite
            # blocks are those of the present forward: a key before it is seen as by any token
            known = blocks[row].tolist() if blocked and key >= length - queries else [-1] * LENGTH
            q, k = int(keys.index[row, place]), int(keys.index[row, key])
            seen = bool(keys.valid[row, key]) and sees(q, k, known, window, cut)
            expected = (float(keys.bias[row, key]) if keys.bias is not None else 0.0) if seen else LOWEST
            assert mask[row, 0, query, key] == expected
    assert mask.isfinite().all()


def test_stretches_follow_each_other() -> None:
    first, _ = random_keys(torch.Generator().manual_seed(4), biased=True)
    second, _ = random_keys(torch.Generator().manual_seed(5), biased=False)
    new = Keys.contiguous(40, 2, like=first.index)
    keys = Keys.following([first, second, new])
    for name, parts in {
        "index": [k.index for k in (first, second, new)],
        "valid": [k.valid for k in (first, second, new)],
    }.items():
        assert torch.equal(getattr(keys, name), torch.cat(parts, 1))
    assert keys.index[:, -2:].tolist() == [[40, 41]] * ROWS and keys.valid[:, -2:].all()
    assert keys.padded and not new.padded
    length = first.index.shape[1]
    assert keys.bias is not None and torch.equal(keys.bias[:, :length], first.bias)
    assert (keys.bias[:, length:] == 0).all()
    assert Keys.following([second, new]).bias is None


@pytest.mark.parametrize("number", [1, 5, 99])
def test_the_last_keys(number: int) -> None:
    keys, _ = random_keys(torch.Generator().manual_seed(6), biased=True)
    last = keys.last(number)
    for name in ("index", "valid", "bias"):
        assert torch.equal(getattr(last, name), getattr(keys, name)[:, -number:])


def test_a_window_reaches_no_further_than_its_cache() -> None:
    """Pruning and padding bring tokens closer: the last ``window − 1`` columns hold all that a window reaches."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(20):
        first, _ = random_keys(generator, biased=False)
        second, _ = random_keys(generator, biased=False)
        second = Keys(second.index + LENGTH, second.valid, padded=True)
        keys = Keys.following([first, second, Keys.contiguous(2 * LENGTH, 1, like=first.index)])
        for window in (2, 5, 11, 20, 30):
            whole, cached = (
                attention_mask(k, k.index[:, -1:], torch.float32, window) for k in (keys, keys.last(window))
            )
            assert (whole[..., : -cached.shape[-1]] == LOWEST).all()
            assert torch.equal(whole[..., -cached.shape[-1] :], cached)
