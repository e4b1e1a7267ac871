"""Statistics of the vision tower, against loops over full matrices and histograms."""

import numpy as np
import oracles
import pytest
import torch
from oracles import full_attention

from multimodal import importance
from multimodal.importance import attention_received, context_relevance, mean_attention, patch_entropy, query_set
from multimodal.observation import LayerAttention, MeanAttention

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
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", chunk)
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
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", chunk)
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
@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_mean_attention_is_the_full_matrix(shape: tuple, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "CHUNK_ELEMENTS", chunk)
    queries, keys, scaling = tensors(shape, 2)
    attention = mean_attention(queries, keys, scaling)
    for image in range(2):
        expected = full_attention(queries[image].numpy(), keys[image].numpy(), scaling)
        np.testing.assert_allclose(attention[image].numpy(), expected, atol=1e-6)


@shapes
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.3, 1e6])
def test_kept_attention_says_what_the_layer_says(shape: tuple, threshold: float) -> None:
    queries, keys, scaling = tensors(shape, 2)
    live = LayerAttention(queries, keys, scaling)
    for seen in (live, MeanAttention.of(live, torch.float32)):
        for image in range(2):
            expected = full_attention(queries[image].numpy(), keys[image].numpy(), scaling)
            np.testing.assert_allclose(seen.received()[image].numpy(), expected.mean(0), atol=1e-6)
            relevance = seen.context_relevance(threshold)[image].numpy()
            np.testing.assert_allclose(relevance, oracles.relevance(expected, threshold), atol=1e-6)


@pytest.mark.parametrize(
    ("received", "threshold", "chosen"),
    [
        ([0.1, 0.5, 0.2, 0.2], 0.5, [1, 2, 3]),
        ([0.1, 0.5, 0.2, 0.2], 1.0, [1]),
        ([0.25, 0.25, 0.25, 0.25], 1.0, [0]),  # none exceeds the mean: the first of the most received
        ([0.1, 0.4, 0.4, 0.1], 5.0, [1]),
        ([0.1, 0.5, 0.2, 0.2], 0.0, [0, 1, 2, 3]),
    ],
)
def test_query_set_by_hand(received: list, threshold: float, chosen: list) -> None:
    weights = query_set(torch.tensor([received, received[::-1]]), threshold)
    assert weights[0].nonzero()[:, 0].tolist() == chosen
    assert weights[0][chosen].tolist() == pytest.approx([1 / len(chosen)] * len(chosen))
    assert weights.sum(1).tolist() == pytest.approx([1, 1])


def test_half_precision_stays_close() -> None:
    queries, keys, scaling = tensors((4, 2, 12, 8))
    half = attention_received(queries.bfloat16(), keys.bfloat16(), scaling)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, attention_received(queries, keys, scaling), atol=0.02, rtol=0)
    relevance = context_relevance(queries.bfloat16(), keys.bfloat16(), 1.0, scaling)
    assert relevance.sum().item() == pytest.approx(1.0, abs=1e-3)
