"""What every family must say of its model: layouts and packing against a layout re-derived by hand, parts, devices.

``pytest -p multimodal.testing --pyargs multimodal.testing.families multimodal.testing.pruning --family my.py``, with
``FAMILIES`` in the file: a :class:`~multimodal.testing.tiny_models.family.TinyFamily` by name.
"""

import numpy as np
import pytest
import torch

from multimodal import FlowpruneError, prune
from multimodal.evidence import PatchEntropy
from multimodal.families import Geometry, geometry_of, modules_of
from multimodal.layout import Layout
from multimodal.runtime.prompt import locate
from multimodal.runtime.watch import Encoded
from multimodal.testing.contracts import families, no_gradients  # noqa: F401
from multimodal.testing.oracles import MEAN, STD, config, encode, grid_places, text_model, tiny, token_values, tokens_of
from multimodal.testing.tiny_models import CACHE, FAMILIES, IMAGE_TOKEN, LAYERS, is_visual, sample

MAP = PatchEntropy()  # what the map that is packed may be called


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
            encoded[kind], first = Encoded(layouts, {MAP: [each[:, 0] for each in packed]}), last
    assert first == len(views)
    ids = inputs["input_ids"].numpy()
    prompt = locate(family, ids, np.ones(ids.shape, dtype=bool), encoded)
    assert sum(map(len, features)) == sum(map(len, by_hand)) == int(is_visual(inputs).sum())
    arrays, first = [view.numpy() for view in views], 0
    for image, tokens in zip(prompt.images, by_hand, strict=True):
        layout, values = image.layout, torch.cat([prompt.evidence[MAP][source] for source in image.sources])
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
