"""Where a family's visual tokens are: its layouts and packing against a layout re-derived by hand."""

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
from multimodal.runtime.prompt import locate
from multimodal.runtime.watch import Encoded
from multimodal.testing.contracts import families
from multimodal.testing.oracles import MEAN, STD, config, encode, grid_places, text_model, tiny, token_values, tokens_of
from multimodal.testing.tiny_models import CACHE, FAMILIES, IMAGE_TOKEN, LAYERS, build, is_visual, sample
from multimodal.testing.tiny_models.family import VISION

SIZES = [(40, 60), (64, 64), (30, 90), (32, 32), (90, 30), (20, 100), (33, 47), (64, 32), (1000, 700)]


def inputs_of_every_size(model: PreTrainedModel) -> list[dict]:
    """Single images of a tiled model."""
    side = model.config.vision_config.image_size
    return [{"pixel_values": torch.randn(1, 5, 3, side, side), "image_sizes": torch.tensor([size])} for size in SIZES]


@families
@pytest.mark.parametrize("size", [0, 2])
def test_layouts_and_packing_equal_the_layout_by_hand(name: str, size: int) -> None:
    model, own = tiny(name), FAMILIES[name]
    family = geometry_of(model.config)
    inputs = sample(model, images=2, size=size, videos=1 if own.video and own.mixes_media else 0)
    by_hand, features = tokens_of(model, inputs), encode(model, inputs)
    pictures = own.pictures(model, inputs)
    side = family.patch_size
    views = [torch.randn(frames[0].shape[1] // side, frames[0].shape[2] // side) for frames in pictures]
    orders = own.tower_order(model, inputs) if own.tower_order else [list(range(view.numel())) for view in views]
    in_tower_order = [view.flatten()[order].unsqueeze(1) for view, order in zip(views, orders, strict=True)]
    encoded, first = {}, 0
    kinds = {"image": (family.layouts, "pixel_values"), "video": (family.video_layouts, "pixel_values_videos")}
    for kind, (layouts_of, key) in kinds.items():
        if key in inputs:
            layouts = layouts_of(inputs)
            last = first + sum(len(layout.views) for layout in layouts)
            packed = family.pack(in_tower_order[first:last], layouts)
            assert [len(each) for each in packed] == [layout.visual_tokens for layout in layouts]
            encoded[kind], first = Encoded(layouts, {"map": [each[:, 0] for each in packed]}), last
    assert first == len(views)
    ids = inputs["input_ids"].numpy()
    prompt = locate(family, ids, np.ones(ids.shape, dtype=bool), encoded)
    assert sum(map(len, features)) == sum(map(len, by_hand)) == int(is_visual(inputs).sum())
    arrays, first = [view.numpy() for view in views], 0
    for image, tokens in zip(prompt.images, by_hand, strict=True):
        layout, values = image.layout, torch.cat([prompt.evidence["map"][source] for source in image.sources])
        assert layout.visual_tokens == len(tokens)
        assert list(layout.newlines) == [place for place, token in enumerate(tokens) if token is None]
        assert layout.cells.tolist() == [list(place) for place in grid_places(tokens)]
        expected = token_values(tokens, arrays[first : first + len(layout.views)])
        np.testing.assert_allclose(values, expected, atol=1e-6)
        first += len(layout.views)


@families
@pytest.mark.parametrize("kind", ["image", "other image", "video"])
def test_one_busy_square_is_what_remains(name: str, kind: str) -> None:
    """Flat pictures with noise under one visual token: entropy must find it, in every view and corner."""
    model, own = tiny(name), FAMILIES[name]
    if kind == "video" and own.video is None:
        return
    chosen = config([(0, 1e-6), (3, 1e-6)], entropy_weight=10.0)
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    patch = geometry_of(model.config).patch_size
    inputs = sample(model, images=kind != "video", videos=kind == "video", size=2 if kind == "other image" else 0)
    flat = [[torch.full_like(frame, 0.5) for frame in frames] for frames in own.pictures(model, inputs)]
    placeholders, first, before = is_visual(inputs)[0].nonzero()[:, 0].tolist(), 0, 0
    with prune(model, chosen) as pruner:
        for tokens in tokens_of(model, inputs):  # several where a tile is an image of its own
            places = placeholders[first : first + len(tokens)]
            newlines = {place for place, token in zip(places, tokens, strict=True) if token is None}
            shown = [token for token in tokens if token is not None]
            corners = []
            for view in {min(token)[0] for token in shown}:
                seen = [token for token in shown if min(token)[0] == view]
                for down in (1, -1):
                    for across in (1, -1):
                        corners.append(max(seen, key=lambda t: (down * min(t)[1] + across * min(t)[2], down, across)))
            for corner in corners:
                pictures = [[frame.clone() for frame in frames] for frames in flat]
                for view, row, column in corner:
                    for frame in pictures[before + view]:
                        noise = torch.randint(0, 256, (3, patch, patch), generator=generator) / 255
                        frame[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = noise
                painted = [[(frame - mean) / std for frame in frames] for frames in pictures]
                model(**own.painted(inputs, painted))
                expected = newlines | {places[tokens.index(corner)]}
                for kept in pruner.report[0].kept:
                    assert set(kept.tolist()) & set(places) == expected
            first += len(tokens)
            before += len({min(token)[0] for token in shown})


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


@families
def test_parts(name: str) -> None:
    model = tiny(name)
    family = modules_of(model)
    geometry = family.geometry
    assert family.text_model is text_model(model)
    assert len(family.text_layers) == geometry.text_layers == LAYERS
    assert (geometry.patch_size, geometry.image_token_id, family.cache_name) == (4, IMAGE_TOKEN, CACHE)
    assert FAMILIES[name].vision_attention(model) in set(family.vision_layer(-1).modules())
    layers = list(geometry.whole_view_layers)
    assert geometry.vision_layer(-len(layers)) == layers[0] and len(set(layers)) == len(layers)
    with pytest.raises(FlowpruneError, match=f"vision_layer -{len(layers) + 1} does not exist.* −{len(layers)} to −1"):
        family.vision_layer(-len(layers) - 1)


@families
def test_random_images_are_read(name: str) -> None:
    """What the benchmark stage measures when there is no processor."""
    model = tiny(name)
    family = geometry_of(model.config)
    pixels = family.random_image((64, 64))
    number = sum(layout.visual_tokens for layout in family.layouts(pixels))
    ids = torch.tensor([[9, *[IMAGE_TOKEN] * number, 10]])
    with prune(model, config()) as pruner:
        model(**pixels, **family.token_inputs(ids), input_ids=ids)
    assert pruner.report[0].visual_tokens == number


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


@families
def test_geometry_needs_no_device(name: str) -> None:
    """Not the default one, where a tensor would lie that is made without a device, and no values of the maps."""
    model, own = tiny(name), FAMILIES[name]
    kinds = ["image", "video"] if own.video else ["image"]
    for kind in kinds:
        inputs = sample(model, images=2 * (kind == "image"), videos=2 * (kind == "video"))

        def layouts_of(kind: str = kind, inputs: dict = inputs) -> tuple[Geometry, list[Layout]]:
            geometry = geometry_of(model.config)
            return geometry, (geometry.layouts if kind == "image" else geometry.video_layouts)(inputs)

        geometry, expected = layouts_of()
        views = [torch.randn(patches, 2) for layout in expected for patches in layout.views]
        packed = geometry.pack(views, expected)
        torch.set_default_device("meta")
        try:
            fresh, layouts = layouts_of()
            again = fresh.pack(views, layouts)
            pixels = fresh.random_image()
        finally:
            torch.set_default_device(None)
        assert layouts == expected
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(packed, again, strict=True))
        assert all(value.device.type == "cpu" for value in pixels.values())
        elsewhere = geometry.pack([view.to("meta") for view in views], expected)
        assert [(each.shape, each.device.type) for each in elsewhere] == [(each.shape, "meta") for each in packed]


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
