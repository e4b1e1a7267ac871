"""What single families and their parts do beside the contract of all (multimodal/testing/families.py)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    LlavaConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from multimodal import FlowpruneError, prune
from multimodal.families import Geometry, check_supported, geometry_of, modules_of
from multimodal.families.llava import CLASS_TOKEN
from multimodal.layout import Layout
from multimodal.testing.oracles import config, grid_places, text_model, tiny, tokens_of
from multimodal.testing.tiny_models import IMAGE_TOKEN, build
from multimodal.testing.tiny_models.family import VISION

SIZES = [(40, 60), (64, 64), (30, 90), (32, 32), (90, 30), (20, 100), (33, 47), (64, 32), (1000, 700)]


def inputs_of_every_size(model: PreTrainedModel) -> list[dict]:
    """Single images of a tiled model."""
    side = model.config.vision_config.image_size
    return [{"pixel_values": torch.randn(1, 5, 3, side, side), "image_sizes": torch.tensor([size])} for size in SIZES]


@pytest.mark.parametrize("aspect", ["anyres_max_1", "anyres_max_2"])
def test_interpolated_maps_keep_their_place(aspect: str) -> None:
    """The packing code shrinks large views: a map's peak must stay where it was, relative to the view."""
    model = build("llava_onevision")
    model.config.vision_aspect_ratio = aspect
    family = geometry_of(model.config)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    shrunk = 0
    for inputs in inputs_of_every_size(model):
        [layout] = family.layouts(inputs)
        [features] = model.model.get_image_features(**inputs).pooler_output
        assert len(features) == layout.visual_tokens
        assert features[list(layout.newlines)].eq(model.model.image_newline).all()
        tokens = tokens_of(model, inputs)[0]
        whole = grid_places(tokens)  # not interpolated
        rows, columns = (1 + max(place[axis] for place in whole if place[0] == 1) for axis in (1, 2))
        shrunk += layout.grids[1] != (rows, columns)
        patches = torch.zeros(len(layout.views), side * side, 1)
        visible = [
            (cell, place)
            for cell, place in zip((min(token) for token in tokens if token), whole, strict=True)
            if cell[0]
        ]
        for (tile, row, column), (_, y, x) in visible[:: max(1, len(visible) // 40)]:
            patches.zero_()
            patches[tile, row * side + column] = 1.0
            [packed] = family.pack(list(patches), [layout])
            high = packed[side * side :, 0].nan_to_num(-1.0).view(layout.grids[1][0], -1)[:, :-1]
            if high.max() == 0:
                continue  # bilinear shrinking may step over a single patch
            peak = np.unravel_index(int(high.argmax()), high.shape)
            for found, place, length, full in zip(peak, (y, x), layout.grids[1], (rows, columns), strict=True):
                assert abs((found + 0.5) / length - (place + 0.5) / full) <= 1.0 / length
            assert (packed[: side * side] == 0).all()
    assert shrunk > 0


def test_images_of_a_multi_image_prompt_are_one_tile() -> None:
    """The processor says how many images a prompt has; only single images are cut into tiles."""
    model = tiny("llava_onevision")
    side = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = {
        "pixel_values": torch.randn(3, 5, 3, side, side, generator=generator),
        "image_sizes": torch.tensor([(40, 60), (64, 64), (30, 90)]),
        "batch_num_images": torch.tensor([2, 1]),
    }
    layouts = geometry_of(model.config).layouts(pixels)
    assert [len(layout.views) for layout in layouts] == [1, 1, 4]
    features = model.model.get_image_features(**pixels).pooler_output
    assert [layout.visual_tokens for layout in layouts] == [len(own) for own in features]
    assert layouts[0] == Layout(grids=((8, 8),), newlines=(64,), views=(64,), image_size=(40, 60))

    rows = [[9] + [IMAGE_TOKEN] * 65 + [10, 11] + [IMAGE_TOKEN] * 65 + [12], [9, *[IMAGE_TOKEN] * len(features[2]), 13]]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    inputs = pixels | {"input_ids": ids, "attention_mask": (ids != 0).long()}
    stock = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with prune(model, config([(0, 1.0), (2, 1.0)])):
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), stock)
    with prune(model, config([(0, 0.5), (2, 0.5)])) as pruner:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert [len(kept) for kept in pruner.report[0].kept] == [66, 34]  # 65 → 33 → 17 an image
    for kept in pruner.report[0].kept:
        assert {65, 132} <= set(kept.tolist())  # the newline token of each


def test_several_feature_layers_count_from_the_deepest() -> None:
    model = build("llava_siglip")
    stack = next(module for module in model.model.vision_tower.modules() if isinstance(module, nn.ModuleList))
    model.config.vision_feature_layer = [-3, 1]  # states 2 and 1 of 0 .. 4
    assert modules_of(model).vision_layer(-1) is stack[1]


def test_unsupported_families_are_named() -> None:
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    message = "type 'qwen2' are not supported: choose one of "
    for refused in (
        lambda: modules_of(model),
        lambda: geometry_of(model.config),
        lambda: prune(model, config()).__enter__(),
        lambda: check_supported("qwen2"),
    ):
        with pytest.raises(FlowpruneError, match=message):
            refused()
    assert set(Geometry.registry) >= {"llava", "llava_onevision"}


@pytest.mark.parametrize("size", [(44, 32), (32, 36), (44, 60), (36, 36), (47, 33)], ids=str)
def test_mistral_leaves_out_patches_that_fill_no_token(size: tuple[int, int]) -> None:
    """With an odd number of patches a side, the model's joining drops the last row or column."""
    model = tiny("mistral3")
    geometry = geometry_of(model.config)
    pixels = {"pixel_values": torch.randn(2, 3, 64, 64), "image_sizes": torch.tensor([size, (64, 40)])}
    layouts = geometry.layouts(pixels)
    features = model.model.get_image_features(**pixels).pooler_output
    assert [layout.visual_tokens for layout in layouts] == [len(own) for own in features]
    assert len(geometry.patch_pixels(pixels["pixel_values"], layouts)) == sum(sum(own.views) for own in layouts)
    patches = torch.arange(layouts[0].views[0], dtype=torch.float).view(size[0] // 4, size[1] // 4)
    views = [patches.view(-1, 1), torch.zeros(layouts[1].views[0], 1)]
    packed, joined = geometry.pack(views, layouts)[0], model.config.spatial_merge_size
    rows, columns = layouts[0].grids[0]
    for row in range(rows):
        for column in range(columns):
            own = patches[row * joined : (row + 1) * joined, column * joined : (column + 1) * joined]
            assert packed[row * columns + column, 0] == own.mean()
    ids = torch.tensor([[9, *[IMAGE_TOKEN] * sum(layout.visual_tokens for layout in layouts), 10]])
    with prune(model, config()) as pruner:
        model(**pixels, input_ids=ids)
    assert pruner.report[0].visual_tokens == sum(layout.visual_tokens for layout in layouts)


def test_a_tower_shallower_than_its_whole_view_layers() -> None:
    settings = build("qwen2_5_vl").config
    settings.vision_config.depth, settings.vision_config.fullatt_block_indexes = 3, [7, 1, 3]
    modules = modules_of(Qwen2_5_VLForConditionalGeneration(settings))
    assert list(modules.geometry.whole_view_layers) == [1]
    assert modules.vision_layer(-1) is modules.vision_tower.blocks[1]
    settings.vision_config.fullatt_block_indexes = [7]
    with pytest.raises(FlowpruneError, match="vision_layer -1 does not exist: no layer"):
        geometry_of(settings).vision_layer(-1)


@pytest.mark.parametrize("tower", sorted({*CLASS_TOKEN, "aimv2_vision_model", "siglip_vision_model"}))
def test_class_tokens_are_known_by_the_config(tower: str) -> None:
    """Class and register tokens, of every tower that is said to have some, and of some that have none."""
    settings = CONFIG_MAPPING["mlcd" if tower == "mlcd_vision_model" else tower](**VISION)
    real = AutoModel.from_config(settings).eval()
    pixels = torch.randn(1, 3, 32, 32)
    extra = real(pixels, output_hidden_states=True).hidden_states[-2].shape[1] - (32 // 4) ** 2
    for strategy, expected in (("full", extra), ("default", max(extra - 1, 0))):
        llava = LlavaConfig(vision_config=settings, vision_feature_select_strategy=strategy)
        [layout] = geometry_of(llava).layouts({"pixel_values": pixels})
        assert layout.newlines == tuple(range(expected)) and layout.patch_tokens == 64


class Adapted(nn.Module):
    """What PEFT makes of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> nn.Module:
        return self.base_model


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, Adapted, lambda model: nn.DataParallel(torch.compile(Adapted(model)))],
    ids=["compile", "data parallel", "PEFT", "all of them"],
)
def test_wrapped_models_are_unwrapped(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny("llava_siglip")
    modules = modules_of(wrap(model))
    assert modules.model is model and modules.text_model is text_model(model)


def test_what_is_no_whole_model_is_refused() -> None:
    model = tiny("llava_siglip")
    with pytest.raises(FlowpruneError, match="LlavaModel has no base model below it"):
        modules_of(model.model)
    with pytest.raises(FlowpruneError, match="type None are not supported"):
        modules_of(nn.Linear(1, 1))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_sizes_are_read_from_any_container(kind: Callable[[list], Any]) -> None:
    inputs = {"image_sizes": kind([[40, 60], [64, 64]]), "batch_num_images": kind([1, 1])}
    layouts = geometry_of(tiny("llava_onevision").config).layouts(inputs)
    assert [layout.image_size for layout in layouts] == [(40, 60), (64, 64)]


def test_learned_pooling_lays_videos_out_as_an_average_does() -> None:
    settings = build("llava_next_video").config
    settings.spatial_pool_mode = "conv"
    geometry = geometry_of(settings)
    [layout] = geometry.video_layouts({"pixel_values_videos": torch.zeros(1, 2, 3, 32, 32)})
    [packed] = geometry.pack([torch.arange(64.0).unsqueeze(1)] * 2, [layout])
    assert layout.grids == ((4, 4), (4, 4)) and packed[0, 0] == (0 + 1 + 8 + 9) / 4
