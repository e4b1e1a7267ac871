"""What single methods do beside the contract of all (multimodal/testing/methods.py), and a user's own can do."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import (
    Request,
)
from multimodal.families import geometry_of
from multimodal.layout import Layout
from multimodal.methods import Method, SearchRange, Selection, VisualTokens, method_named
from multimodal.plan import kept_counts
from multimodal.testing.methods import LAYOUTS, random_tokens
from multimodal.testing.oracles import LAYER_0_AND_INNER, config, tiny
from multimodal.testing.tiny_models import CACHE, batch, is_visual, sample

TOWER = ["fastervlm", "flowcut", "hiprune", "holov", "ipcv", "prumerge", "vispruner", "visionzip", "vscan"]
LANGUAGE = ["cdpruner", "dart", "fastv", "pyramiddrop", "sparsevlm"]
SHIPPED = ["divprune", "random", "uniform", "vflowopt", *TOWER, *LANGUAGE]


def test_shipped_methods_are_registered() -> None:
    shipped = {name for name, kind in Method.registry.items() if kind.__module__.startswith("multimodal.methods")}
    assert shipped == set(SHIPPED)
    with pytest.raises(FlowpruneError, match=r"no method 'fastest': choose one of .*random.*uniform.*vflowopt"):
        method_named("fastest")


@pytest.mark.parametrize("name", SHIPPED)
def test_search_ranges_lie_within_bounds(name: str) -> None:
    kind = method_named(name)
    for field, info in kind.model_fields.items():
        for part in info.metadata:
            if isinstance(part, SearchRange):
                assert part.low < part.high and (part.low > 0 or not part.log)
                for value in (part.low, part.high):
                    typed = int(value) if info.annotation is int else value
                    kind.model_validate({"name": name, field: typed})


def test_ties_go_to_the_earlier_token() -> None:
    method = method_named("vflowopt").model_validate({"name": "vflowopt", "recycling_cell": None})
    layout = Layout(grids=((2, 3),))
    importance = torch.tensor([[1.0, 2, 1, 2, 1, 2]])
    tokens = VisualTokens(0, layout, torch.arange(6)[None], lambda: torch.zeros(1, 6, 1), lambda request: importance)
    assert method.select(tokens, 4).tolist() == [[0, 1, 3, 5]]


# uniform


def everything(layout: Layout) -> VisualTokens:
    return of_layout(layout, 0, torch.arange(layout.patch_tokens)[None])


def of_layout(layout: Layout, layer: int, index: Tensor) -> VisualTokens:
    """Tokens of which nothing but their place is known."""
    return VisualTokens(layer, layout, index, lambda: torch.zeros(*index.shape, 1), unanswered)


def unanswered(request: Request) -> Tensor:
    raise AssertionError(f"{request} was not declared")


@pytest.mark.parametrize("side", [4, 8, 16])
def test_uniform_fills_quadrants_alike_at_every_count(side: int) -> None:
    layout = Layout(grids=((side, side),))
    quadrant = (layout.cells[:, 1] >= side // 2) * 2 + (layout.cells[:, 2] >= side // 2)
    for count in range(1, side * side + 1):
        kept = method_named("uniform")().select(everything(layout), count)[0]
        per_quadrant = torch.bincount(quadrant[kept], minlength=4)
        assert per_quadrant.max() - per_quadrant.min() <= 1


@pytest.mark.parametrize("grid", [(8, 8), (12, 12), (24, 24), (27, 27), (10, 17)], ids=str)
def test_uniform_leaves_no_hole_at_any_count(grid: tuple[int, int]) -> None:
    """The nearest kept token is at most 1.5 spacings away (random tokens: up to 2)."""
    layout = Layout(grids=(grid,))
    places = layout.cells[:, 1:].float()
    distance = torch.cdist(places, places)
    for count in range(1, layout.patch_tokens + 1, 1 + layout.patch_tokens // 200):
        kept = method_named("uniform")().select(everything(layout), count)[0]
        assert distance[:, kept].amin(1).max() <= 1.5 * (layout.patch_tokens / count) ** 0.5


def test_uniform_thins_out_what_is_left() -> None:
    """Two steps keep what one step to the same count keeps."""
    layout = LAYOUTS[1]
    method = method_named("uniform")()
    first = method.select(everything(layout), 40)
    left = of_layout(layout, 3, first)
    second = first.gather(1, method.select(left, 11))
    assert torch.equal(second, method.select(everything(layout), 11))


def test_uniform_serves_every_grid() -> None:
    layout = LAYOUTS[1]
    for count in range(10, layout.patch_tokens):
        grid = layout.cells[method_named("uniform")().select(everything(layout), count)[0], 0]
        share = (grid == 0).float().mean().item()
        assert abs(share - 16 / 70) < 0.2, count


# random


def test_random_depends_on_seed_and_layer_only() -> None:
    layout = LAYOUTS[0]

    def draw(seed: int, layer: int, data: int) -> list:
        return method_named("random")(seed=seed).select(random_tokens(layout, layer, images=1, seed=data), 10).tolist()

    assert draw(0, 0, data=1) == draw(0, 0, data=2)
    assert len({str(draw(seed, layer, 1)) for seed in (0, 1, 2) for layer in (0, 1, 4)}) == 9


def test_random_is_fair() -> None:
    layout = LAYOUTS[0]
    tokens = random_tokens(layout, 0, images=1)
    counts = torch.zeros(42)
    for seed in range(400):
        counts[method_named("random")(seed=seed).select(tokens, 10)[0]] += 1
    assert (counts / 400 - 10 / 42).abs().max() < 0.1


# a user's own


class Corner(Method):
    """Keep what is near a corner."""

    name: Literal["test_corner"] = "test_corner"
    bottom: bool = False

    def score(self, tokens: VisualTokens) -> Tensor:
        distance = tokens.layout.cells[:, 1:].sum(1).float()
        return (distance if self.bottom else -distance)[tokens.index]


class Farthest(Method):
    """Greedy: the token that is least like those chosen."""

    name: Literal["test_farthest"] = "test_farthest"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        chosen = torch.zeros(len(tokens.index), 1, dtype=torch.long)
        distance = torch.cdist(tokens.features, tokens.features)
        while chosen.shape[1] < count:
            nearest = distance.gather(1, chosen.unsqueeze(-1).expand(-1, -1, distance.shape[-1])).amin(1)
            chosen = torch.cat([chosen, nearest.argmax(1, keepdim=True)], 1)
        return chosen.sort(1).values


class Averaging(Method):
    """Merging: the first token becomes the mean of all, at every step; the others that are kept become zeros."""

    name: Literal["test_averaging"] = "test_averaging"

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        images, left = tokens.index.shape
        kept = torch.arange(count).expand(images, -1)
        return Selection(kept, torch.zeros(images, left, dtype=torch.long), torch.full((images, left), 1 / left))


class Halving(Method):
    """Merging at every step: each two neighbours become their mean."""

    name: Literal["test_halving"] = "test_halving"

    @property
    def merged_weight(self) -> float:
        return 1.0

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        images, left = tokens.index.shape
        owner = torch.arange(left).div(2, rounding_mode="floor").expand(images, -1)
        return Selection(torch.arange(0, left, 2).expand(images, -1), owner, torch.full((images, left), 0.5))


class Miscounting(Method):
    name: Literal["test_miscounting"] = "test_miscounting"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return super().select(tokens, count - 1)

    def score(self, tokens: VisualTokens) -> Tensor:
        return torch.zeros(tokens.index.shape)


@pytest.mark.parametrize("model_name", ["llava_clip_full", "llava_onevision"])
@pytest.mark.parametrize(
    "fields", [{"name": "test_corner", "bottom": True}, {"name": "test_farthest"}, {"name": "test_averaging"}], ids=str
)
def test_own_methods_prune_and_round_trip(model_name: str, fields: dict, tmp_path: Path) -> None:
    model = tiny(model_name)
    chosen = PruningConfig.from_pretrained(config(**fields).save_pretrained(tmp_path))
    assert chosen.method.model_dump() == fields
    inputs = batch([sample(model, images=2), sample(model, images=1, seed=1)])
    layouts = geometry_of(model.config).layouts(inputs)
    seen: list[dict] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in model.model.language_model.layers
    ]
    with prune(model, chosen) as pruner:
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for handle in handles:
        handle.remove()
    assert output.shape[1] == inputs["input_ids"].shape[1] + 3
    for entry, own in zip(pruner.report, (layouts[:2], layouts[2:]), strict=True):
        for step, kept in enumerate(entry.kept):
            assert len(kept) == sum(kept_counts(layout, chosen.schedule)[step] for layout in own)
    if fields["name"] == "test_corner":
        [entry] = pruner.report[1:]
        padding = (inputs["attention_mask"][1] == 0).sum()
        places = is_visual(inputs)[1, padding:].nonzero()[:, 0][layouts[2].patch_index]
        distance = layouts[2].cells[:, 1:].sum(1)
        for kept in entry.kept:
            is_kept = torch.isin(places, kept)
            assert distance[is_kept].min() >= distance[~is_kept].max()
    if fields["name"] == "test_averaging":
        features = model.model.get_image_features(
            **{key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
        )
        for row, image in ((0, 0), (1, 2)):
            expected = features.pooler_output[image][layouts[image].patch_index].mean(0)
            assert torch.isclose(seen[0][row], expected, atol=1e-5).all(1).sum() == 1
            assert (seen[0][row] == 0).all(1).sum() >= kept_counts(layouts[image], chosen.schedule)[0] - len(
                layouts[image].newlines
            ) - 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_merge_inside_the_language_model_counts_all_that_it_stands_for(attention: str) -> None:
    """Hidden states merge, and later layers and decoding weigh a token by every token that went into it."""
    model = tiny("llava_clip", attention)  # 64 visual tokens, then 32, then 16
    inputs, seen = sample(model), []
    visual = is_visual(inputs)[0]
    first, words = int(visual.nonzero()[0]), int((~visual).sum())
    with prune(model, config([(1, 0.5), (3, 0.5)], name="test_halving")) as pruner:
        handles = [  # behind the pruner's own
            layer.register_forward_pre_hook(
                lambda _, args, kwargs: seen.append((args[0], kwargs["attention_mask"])), with_kwargs=True
            )
            for layer in model.model.language_model.layers
        ]
        cache = model(**inputs)[CACHE]
        model(input_ids=torch.tensor([[11]]), **{CACHE: cache})
    for handle in handles:
        handle.remove()
    assert [len(kept) for kept in pruner.report[0].kept] == [32, 16]
    for layer, (tokens, size) in {1: (32, 2), 2: (32, 2), 3: (16, 4), 4: (16, 4)}.items():
        for hidden, mask in (seen[layer], seen[5 + layer]):  # prefill, decoding
            assert hidden.shape[1] in (words + tokens, 1)
            row = mask[0, 0, -1]
            expected = torch.zeros(len(row))
            expected[first : first + tokens] = np.log(size)
            torch.testing.assert_close(row, expected)


def test_a_method_that_miscounts_is_stopped() -> None:
    model = tiny("llava_clip")
    with (
        pytest.raises(FlowpruneError, match=r"test_miscounting left 44 .* 45"),
        prune(model, config(name="test_miscounting")),
    ):
        model(**sample(model))


def test_a_method_without_a_rule_is_stopped() -> None:
    class Nothing(Method):
        name: Literal["test_nothing"] = "test_nothing"

    model = tiny("llava_clip")
    with (
        pytest.raises(NotImplementedError, match="Nothing implements neither score nor select"),
        prune(model, config(name="test_nothing")),
    ):
        model(**sample(model))
    del Method.registry["test_nothing"]


def test_what_a_method_sees() -> None:
    seen: list[Any] = []

    class Watching(Corner):
        name: Literal["test_watching"] = "test_watching"

        def score(self, tokens: VisualTokens) -> Tensor:
            seen.append(tokens)
            assert tokens.features.shape[:2] == tokens.index.shape  # made when it is read
            return super().score(tokens)

    model = tiny("llava_onevision")
    inputs = sample(model, images=2, size=0)
    with prune(model, config(name="test_watching")):
        model(**inputs)
    del Method.registry["test_watching"]
    assert [tokens.layer for tokens in seen] == [layer for layer, _ in LAYER_0_AND_INNER for _ in range(2)]
    features = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
    for tokens, image in zip(seen, features, strict=False):  # at layer 0
        assert torch.equal(tokens.features[0], image[tokens.layout.patch_index])
        assert torch.equal(tokens.index[0], torch.arange(tokens.layout.patch_tokens))
    for tokens in seen:
        assert torch.equal(tokens.index[0], tokens.index[0].unique())
