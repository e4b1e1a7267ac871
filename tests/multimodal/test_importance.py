"""Statistics of the vision tower, against loops over full matrices and histograms."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from multimodal import importance
from multimodal.importance import (
    attention_received,
    chosen_attention,
    context_relevance,
    largest_query_set,
    patch_entropy,
    query_set_sizes,
    ranked_relevance,
    relevance_from_table,
)
from multimodal.testing import oracles
from multimodal.testing.oracles import full_attention

SHAPES = [(1, 1, 5, 4), (4, 4, 9, 8), (6, 2, 7, 4), (3, 1, 16, 2)]  # heads, key heads, tokens, width
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def tensors(shape: tuple, *leading: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    heads, key_heads, tokens, width = shape
    generator = torch.Generator().manual_seed(tokens)
    queries = torch.randn(*leading, heads, tokens, width, generator=generator) * 2
    keys = torch.randn(*leading, key_heads, tokens, width, generator=generator)
    return queries, keys, 0.7


# entropy


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (12, 4)])
@pytest.mark.parametrize("levels", [2, 9, 256])
def test_entropy_equals_a_histogram_loop(size: tuple, levels: int) -> None:
    image = torch.randint(0, levels, (2, 3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    bits = patch_entropy(image, 4)
    assert bits.shape == (2, 3, size[0] // 4, size[1] // 4)
    for first in range(2):
        for second in range(3):
            expected = oracles.entropy([image[first, second].numpy()], 4)
            np.testing.assert_allclose(bits[first, second].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(patch_entropy(image[1, 2], 4), bits[1, 2])


def test_entropy_of_flat_and_of_all_different_patches() -> None:
    flat = torch.full((16, 16, 3), 200, dtype=torch.uint8)
    assert patch_entropy(flat, 16).tolist() == [[0.0]]
    ramp = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3)
    assert patch_entropy(ramp, 16).item() == pytest.approx(8.0)
    halves = torch.cat([flat[:8], flat[8:] // 2])
    assert patch_entropy(halves, 16).item() == pytest.approx(1.0)


def test_entropy_wants_bytes() -> None:
    with pytest.raises(TypeError, match="uint8"):
        patch_entropy(torch.zeros(4, 4, 3), 2)


# attention


@shapes
@pytest.mark.parametrize("chunk", [1, 20, 1 << 22])
def test_received_is_the_column_mean(shape: tuple, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", {"cpu": chunk})
    queries, keys, scaling = tensors(shape)
    expected = full_attention(queries.numpy(), keys.numpy(), scaling).mean(0)
    received = attention_received(queries, keys, scaling)
    assert received.dtype == torch.float32
    np.testing.assert_allclose(received.numpy(), expected, atol=1e-6)


@shapes
@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0, 1.3, 1e6])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_relevance_is_the_mean_row_of_the_query_set(
    shape: tuple, threshold: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", {"cpu": chunk})
    queries, keys, scaling = tensors(shape)
    attention = full_attention(queries.numpy(), keys.numpy(), scaling)
    relevance = context_relevance(queries, keys, threshold, scaling)
    np.testing.assert_allclose(relevance.numpy(), oracles.relevance(attention, threshold), atol=1e-6)
    if threshold == 0:
        np.testing.assert_allclose(relevance.numpy(), attention.mean(0), atol=1e-6)
    if threshold == 1e6:
        np.testing.assert_allclose(relevance.numpy(), attention[attention.mean(0).argmax()], atol=1e-6)


@shapes
def test_leading_dimensions_are_independent(shape: tuple) -> None:
    queries, keys, scaling = tensors(shape, 2, 3)
    received, relevance = attention_received(queries, keys, scaling), context_relevance(queries, keys, 1.1, scaling)
    for first in range(2):
        for second in range(3):
            own = queries[first, second], keys[first, second]
            torch.testing.assert_close(received[first, second], attention_received(*own, scaling))
            torch.testing.assert_close(relevance[first, second], context_relevance(*own, 1.1, scaling))


@shapes
@pytest.mark.parametrize("lowest", [0.0, 0.7, 1.2])
@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_a_table_answers_every_threshold_exactly_where_sets_are_small(
    shape: tuple, lowest: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", {"cpu": chunk})
    queries, keys, scaling = tensors(shape, 2)
    received = attention_received(queries, keys, scaling)
    table = ranked_relevance(queries, keys, scaling, received, lowest)
    assert table.shape[-2] <= importance.EXACT_SETS
    for threshold in (lowest, lowest + 0.05, 1.3, 1.6, 5.0, 1e6):
        found = relevance_from_table(table, received, lowest, threshold)
        for image in range(2):
            attention = full_attention(queries[image].numpy(), keys[image].numpy(), scaling)
            np.testing.assert_allclose(found[image].numpy(), oracles.relevance(attention, threshold), atol=1e-6)


def test_a_table_of_large_sets_is_small_and_near() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(2, 2, 600, 8, generator=generator) * 1.5 for _ in range(2))
    received = attention_received(queries, keys, 0.7)
    table = ranked_relevance(queries, keys, 0.7, received, 0.05)
    assert table.shape[-2] < 200
    for threshold in (0.05, 0.3, 0.8, 1.0, 1.5, 4.0):
        found = relevance_from_table(table, received, 0.05, threshold)
        exact = context_relevance(queries, keys, threshold, 0.7)
        assert (found - exact).abs().sum(-1).max() < 0.02  # of a relevance that sums to 1
        top = [set(each.topk(60).indices[0].tolist()) for each in (found, exact)]
        assert len(top[0] & top[1]) >= 57


@pytest.mark.parametrize("tokens", [1, 5, 64, 576, 9216])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 1.0, 1.01, 7.3, 50.0])
def test_no_query_set_is_larger_than_its_bound(tokens: int, threshold: float) -> None:
    bound = largest_query_set(tokens, threshold)
    received = torch.zeros(tokens)
    for size in {1, bound - 1, bound, min(bound + 1, tokens)} - {0}:
        received.zero_()[:size] = 1 / size  # as many as can share all that is received
        assert (received > threshold * received.mean()).sum() <= bound
    sizes = query_set_sizes(tokens, threshold)
    assert sizes == sorted(set(sizes)) and sizes[0] == 1 and sizes[-1] == bound
    assert all(b - a <= max(1, 0.025 * a) for a, b in pairwise(sizes))
    assert len(sizes) < 300


def test_an_even_view_has_one_most_looked_at_token() -> None:
    """All tokens receive the same: the set is empty at 1 and falls back to the first."""
    queries, keys = torch.zeros(1, 1, 6, 2), torch.zeros(1, 1, 6, 2)
    received = attention_received(queries, keys, 1.0)
    table = ranked_relevance(queries, keys, 1.0, received, 0.05)
    for threshold in (1.0, 3.0):
        for found in (
            context_relevance(queries, keys, threshold, 1.0),
            relevance_from_table(table, received, 0.05, threshold),
        ):
            torch.testing.assert_close(found, torch.full((1, 6), 1 / 6))


@shapes
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_chosen_rows_equal_a_loop(shape: tuple, softcap: float | None) -> None:
    queries, keys, scaling = tensors(shape, 2)
    heads, key_heads, tokens, _ = shape
    rows = [0, tokens - 1]
    mask = torch.zeros(2, 1, 2, tokens)
    mask[0, 0, 0, tokens // 2 :] = torch.finfo(torch.float32).min
    mask[1, 0, 1, 0] = 0.8
    found = chosen_attention(queries[:, :, rows], keys, scaling, mask, softcap).mean(1)
    for image in range(2):
        for number, row in enumerate(rows):
            total = torch.zeros(tokens)
            for head in range(heads):
                logits = keys[image, head // (heads // key_heads)] @ queries[image, head, row] * scaling
                if softcap is not None:
                    logits = softcap * (logits / softcap).tanh()
                total += (logits + mask[image, 0, number]).softmax(0)
            torch.testing.assert_close(found[image, number], total / heads)


def test_half_precision_stays_close() -> None:
    queries, keys, scaling = tensors((4, 2, 12, 8))
    half = attention_received(queries.bfloat16(), keys.bfloat16(), scaling)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, attention_received(queries, keys, scaling), atol=0.02, rtol=0)
    relevance = context_relevance(queries.bfloat16(), keys.bfloat16(), 1.0, scaling)
    assert relevance.sum().item() == pytest.approx(1.0, abs=1e-3)
