"""Towers that pack images: all windows of one size in one call, against the stock tower's loop over them."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from multimodal import PruningConfig, prune
from multimodal.evidence import ReceivedAttention, VisionEvidence, VisionFeatures, VisionKeys
from multimodal.families import modules_of
from multimodal.runtime import watch, windows
from multimodal.testing.contracts import EXACT, assert_restored, snapshot
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import build, sample

PACKED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "video_llama_3"]
REQUESTS = [ReceivedAttention(layer=-1), VisionKeys(layer=-1), VisionFeatures(layer=-1)]
ALL_KEPT = PruningConfig(method={"name": "uniform"}, schedule=[{"layer": 0, "keep_ratio": 1.0}])


def images(model: PreTrainedModel, seed: int, number: int = 4) -> dict[str, Tensor]:
    """Images of random sizes that windows do not divide evenly, two of them of one size."""
    generator = torch.Generator().manual_seed(seed)
    sides = 2 * torch.randint(1, 8, (number, 2), generator=generator)
    sides[-1] = sides[0]
    grids = torch.cat([torch.ones(number, 1, dtype=torch.long), sides], 1)
    values = sample(model)["pixel_values"].shape[1]
    pixels = torch.randn(int(grids.prod(1).sum()), values, generator=generator)
    merge = {"image_merge_sizes": torch.ones(number, dtype=torch.long)} if hasattr(model.model, "vision_model") else {}
    return {"pixel_values": pixels, "image_grid_thw": grids, **merge}


def features(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(model.model.get_image_features(**inputs).pooler_output))


def encoded(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, list[VisionEvidence]]:
    found: list[VisionEvidence] = []
    with watch.watch_vision(modules_of(model), REQUESTS, None, lambda *seen: found.extend(seen[-1])):
        return features(model, inputs), found


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries of every call of torch's attention."""
    shapes: list[tuple[int, ...]] = []
    attention: Callable[..., Tensor] = torch.nn.functional.scaled_dot_product_attention

    def noting(query: Tensor, *args: object, **kwargs: object) -> Tensor:
        shapes.append(tuple(query.shape))
        return attention(query, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
        yield shapes


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PACKED)
def test_features_and_evidence_are_those_of_the_loop(
    name: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(name, attention)
    for seed in range(2):
        inputs = images(model, seed)
        stock = features(model, inputs)
        with monkeypatch.context() as patch:
            patch.setattr(watch, "joined_windows", nullcontext)
            looped, expected = encoded(model, inputs)
            assert torch.equal(looped, stock)
        joined, found = encoded(model, inputs)
        torch.testing.assert_close(joined, stock, **EXACT)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.views == theirs.views
            torch.testing.assert_close(ours.tensors(), theirs.tensors(), **EXACT)


@pytest.mark.parametrize("name", PACKED)
def test_a_layer_calls_its_backend_once_a_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    inputs, depth = images(model, 3, number=9), modules_of(model).geometry.vision_layers
    with counted(monkeypatch) as stock:
        features(model, inputs)
    with prune(model, ALL_KEPT), counted(monkeypatch) as joined:
        features(model, inputs)
    sizes = {shape[2] for shape in stock}
    whole = {rows * columns for _, rows, columns in inputs["image_grid_thw"].tolist()}
    assert len(stock) >= 9 * depth
    assert len(joined) <= depth * max(len(whole), len(sizes - whole))
    assert sum(shape[0] * shape[2] for shape in joined) == sum(shape[0] * shape[2] for shape in stock)


def test_an_eager_call_forms_a_bounded_number_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen2_vl", "eager")
    inputs = {"pixel_values": torch.randn(5 * 24, 96), "image_grid_thw": torch.tensor([[1, 4, 6]] * 5)}
    stock = features(model, inputs)
    monkeypatch.setattr(windows, "EAGER_WEIGHTS", 2 * 3 * 24**2)
    with prune(model, ALL_KEPT):
        torch.testing.assert_close(features(model, inputs), stock, **EXACT)


def test_a_backend_registered_in_the_block_and_a_copy_get_the_stock_loop() -> None:
    model = build("qwen2_5_vl")
    inputs = images(model, 1)
    stock, before = features(model, inputs), snapshot(model)
    prompt = sample(model)
    logits = model(**prompt).logits
    with prune(model, ALL_KEPT):
        assert torch.equal(features(copy.deepcopy(model), inputs), stock)
        AttentionInterface.register("late_attention", sdpa_attention_forward)
        model.model.visual.config._attn_implementation = "late_attention"
        assert torch.equal(features(model, inputs), stock)
        model.model.visual.config._attn_implementation = "sdpa"
    assert_restored(model, prompt, before, logits)


def test_a_tower_asked_for_its_weights_gives_those_of_every_image() -> None:
    model = tiny("video_llama_3", "eager")
    inputs = images(model, 2)
    names = ("pixel_values", "image_grid_thw", "image_merge_sizes")
    pixels, grid_thw, merge_sizes = (inputs[name] for name in names)

    def weights() -> list:
        tower = model.model.vision_model
        return tower(pixels, grid_thw=grid_thw, merge_sizes=merge_sizes, output_attentions=True).attentions

    stock = weights()
    with prune(model, ALL_KEPT):
        torch.testing.assert_close(weights(), stock)


def test_gradients_go_through_it() -> None:
    model = build("qwen2_5_vl")
    inputs, gradients = images(model, 4), []
    for block in (nullcontext(), prune(model, ALL_KEPT)):
        with block, torch.enable_grad():
            features(model, inputs).square().sum().backward()
        gradients.append(model.model.visual.blocks[0].attn.qkv.weight.grad.clone())
        model.zero_grad()
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
