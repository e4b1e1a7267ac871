"""Where a family's visual tokens are: its layouts and packing against a layout re-derived by hand."""

import numpy as np
import pytest
import torch
from oracles import MEAN, STD, config, grid_places, tiny, tokens_of, vision_layer
from tiny_models import BUILDERS, CACHE, IMAGE_TOKEN, LAYERS, build, sample
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from multimodal import FlowpruneError, prune
from multimodal.families import Family, check_supported, family_of
from multimodal.layout import Layout

families = pytest.mark.parametrize("name", BUILDERS)
SIZES = [(40, 60), (64, 64), (30, 90), (32, 32), (90, 30), (20, 100), (33, 47), (64, 32), (1000, 700)]


def image_inputs(name: str) -> list[dict]:
    """The images of single prompts; for tiled models, of every size."""
    model = tiny(name)
    if name != "llava_onevision":
        return [sample(model, images=2)]
    side = model.config.vision_config.image_size
    return [{"pixel_values": torch.randn(1, 5, 3, side, side), "image_sizes": torch.tensor([size])} for size in SIZES]


@families
def test_layouts_and_packing_equal_the_layout_by_hand(name: str) -> None:
    model = tiny(name)
    family = family_of(model)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    for inputs in image_inputs(name):
        layouts = family.layouts(inputs)
        patches = torch.randn(sum(layout.tiles for layout in layouts), side * side, 2)
        features = model.model.get_image_features(
            **{key: value for key, value in inputs.items() if key in ("pixel_values", "image_sizes")}
        ).pooler_output
        first = 0
        for layout, packed, tokens, own in zip(
            layouts, family.pack(patches, layouts), tokens_of(model, inputs), features, strict=True
        ):
            assert layout.visual_tokens == len(packed) == len(tokens) == len(own)
            newlines = [place for place, cell in enumerate(tokens) if cell is None]
            assert list(layout.newlines) == newlines
            assert layout.patch_tokens == len(tokens) - len(newlines)
            assert layout.patch_places.tolist() == [place for place, cell in enumerate(tokens) if cell is not None]
            assert layout.cells.tolist() == [list(place) for place in grid_places(tokens)]
            for place, cell in enumerate(tokens):
                if cell is None:
                    assert packed[place].isnan().all()
                    if name == "llava_onevision":
                        assert torch.equal(own[place], model.model.image_newline)
                else:
                    tile, row, column = cell
                    assert torch.equal(packed[place], patches[first + tile, row * side + column])
            first += layout.tiles


@families
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_busy_square_is_what_remains(name: str, attention: str) -> None:
    """Flat images with one patch of noise: entropy must find its tokens, in every tile and corner."""
    model = tiny(name, attention)
    vision = model.config.vision_config
    side, patch = vision.image_size // vision.patch_size, vision.patch_size
    chosen = config([(0, 1e-6), (3, 1e-6)], entropy_weight=10.0)
    generator = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    with prune(model, chosen) as pruner:
        for size in range(4 if name == "llava_onevision" else 1):
            inputs = sample(model, images=1, size=size)
            tokens = tokens_of(model, inputs)[0]
            places = (inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0].tolist()
            newlines = {place for place, cell in zip(places, tokens, strict=True) if cell is None}
            shown = [cell for cell in tokens if cell is not None]
            corners = {cell for cell in shown if cell[1] in (0, side - 1) and cell[2] in (0, side - 1)}
            for tile in {cell[0] for cell in shown}:  # the corners of what is left of a tile
                own = [cell for cell in shown if cell[0] == tile]
                corners |= {min(own), max(own)}
            for tile, row, column in sorted(corners):
                noise = torch.randint(0, 256, (3, patch, patch), generator=generator) / 255
                pixels = ((torch.full_like(inputs["pixel_values"], 0.5) - mean) / std).clone()
                picture = pixels[0, tile] if pixels.ndim == 5 else pixels[0]
                picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = (
                    noise - mean
                ) / std
                model(**inputs | {"pixel_values": pixels})
                expected = newlines | {places[tokens.index((tile, row, column))]}
                for kept in pruner.report[0].kept:
                    assert set(kept.tolist()) == expected


@pytest.mark.parametrize("aspect", ["anyres_max_1", "anyres_max_2"])
def test_interpolated_maps_keep_their_place(aspect: str) -> None:
    """The packing code shrinks large views: a map's peak must stay where it was, relative to the view."""
    model = build("llava_onevision")
    model.config.vision_aspect_ratio = aspect
    family = family_of(model)
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size
    shrunk = 0
    for inputs in image_inputs("llava_onevision"):
        [layout] = family.layouts(inputs)
        [features] = model.model.get_image_features(**inputs).pooler_output
        assert len(features) == layout.visual_tokens
        assert features[list(layout.newlines)].eq(model.model.image_newline).all()
        whole = grid_places(tokens_of(model, inputs)[0])  # not interpolated
        rows, columns = (1 + max(place[axis] for place in whole if place[0] == 1) for axis in (1, 2))
        shrunk += layout.grids[1] != (rows, columns)
        patches = torch.zeros(layout.tiles, side * side, 1)
        visible = [
            (cell, place)
            for cell, place in zip((c for c in tokens_of(model, inputs)[0] if c), whole, strict=True)
            if cell[0]
        ]
        for (tile, row, column), (_, y, x) in visible[:: max(1, len(visible) // 40)]:
            patches.zero_()
            patches[tile, row * side + column] = 1.0
            [packed] = family.pack(patches, [layout])
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
    layouts = family_of(model).layouts(pixels)
    assert [layout.tiles for layout in layouts] == [1, 1, 4]
    features = model.model.get_image_features(**pixels).pooler_output
    assert [layout.visual_tokens for layout in layouts] == [len(own) for own in features]
    assert layouts[0] == Layout(grids=((8, 8),), newlines=(64,), tiles=1, image_size=(40, 60))

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
    family = family_of(model)
    assert family.text_model is model.model.language_model
    assert len(family.text_layers) == LAYERS
    assert family.vision_tower is model.model.vision_tower
    assert (family.patch_size, family.image_token_id, family.cache_name) == (4, IMAGE_TOKEN, CACHE)
    assert vision_layer(model) in set(family.vision_layer(-1).modules())
    layers = [family.vision_layer(-number) for number in range(1, 4)]
    assert len(set(layers)) == 3
    deepest = 4 if name == "llava_onevision" else 3
    with pytest.raises(FlowpruneError, match=f"vision_layer -{deepest + 1} does not exist.* −{deepest} to −1"):
        family.vision_layer(-deepest - 1)


def test_several_feature_layers_count_from_the_deepest() -> None:
    model = build("llava_siglip")
    stack = next(module for module in model.model.vision_tower.modules() if isinstance(module, nn.ModuleList))
    model.config.vision_feature_layer = [-3, 1]  # states 2 and 1 of 0 .. 4
    assert family_of(model).vision_layer(-1) is stack[1]


def test_unsupported_families_are_named() -> None:
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    message = "type 'qwen2' are not supported: choose one of llava, llava_onevision"
    for refused in (
        lambda: family_of(model),
        lambda: prune(model, config()).__enter__(),
        lambda: check_supported("qwen2"),
    ):
        with pytest.raises(FlowpruneError, match=message):
            refused()
    assert set(Family.registry) >= {"llava", "llava_onevision"}
