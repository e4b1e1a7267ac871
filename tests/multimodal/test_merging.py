"""Merging rules against slow numpy, alone and through ``prune()``."""

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.layout import Layout
from multimodal.merging import MergingRule, cluster_centres, make_merging
from multimodal.merging.clusters import NEIGHBOURS
from multimodal.methods import Method, Selection, VisualTokens, make_method
from multimodal.recycling import recycle_tokens
from multimodal.testing.contracts import mixed_samples, run_pruned
from multimodal.testing.oracles import config, decoder, text_model, tiny, tokens_of
from multimodal.testing.tiny_models import batch, is_visual, sample

RULES: list[dict] = [
    {"rule": "none"},
    {"rule": "nearest"},
    {"rule": "nearest", "weight": 1.0},
    {"rule": "clusters"},
    {"rule": "clusters", "share": 0.45, "weight": 0.5},
    {"rule": "cells"},
    {"rule": "cells", "cell": 2.5, "weight": 0.3},
]
rules = pytest.mark.parametrize("fields", RULES, ids=str)


class Given(Method):
    """Scores that a test hands over with the features: the first of them."""

    name: Literal["test_given"] = "test_given"

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.features[..., 0]


def given(images: int = 3, grid: tuple[int, int] = (5, 6), layer: int = 0, seed: int = 0, left: int | None = None):
    """Random tokens; inside the language model, not all are left."""
    generator, number = torch.Generator().manual_seed(seed), grid[0] * grid[1]
    left = left or (number if layer == 0 else number - 6)
    index = torch.stack([torch.randperm(number, generator=generator)[:left].sort()[0] for _ in range(images)])
    features = torch.randn(images, left, 8, generator=generator)
    return VisualTokens(layer, Layout((grid,)), index, lambda: features, lambda request: features)


def one(tokens: VisualTokens, image: int) -> VisualTokens:
    own = slice(image, image + 1)
    read = tokens.features[own]
    return VisualTokens(tokens.layer, tokens.layout, tokens.index[own], lambda: read, tokens.evidence)


def dense(selection: Selection, tokens: int) -> np.ndarray:
    """The weight of every token in every kept one ``[images, count, n]``, edge by edge."""
    images, count = selection.kept.shape
    matrix = np.zeros((images, count, tokens))
    for image in range(images):
        if selection.owner is None:
            matrix[image, range(count), selection.kept[image]] = 1
            continue
        for edge, owner in enumerate(selection.owner[image].tolist()):
            start = edge if selection.source is None else int(selection.source[image, edge])
            if owner < count:
                matrix[image, owner, start] += float(selection.share[image, edge])
    return matrix


# what a selection is


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_many_to_many_edges_are_a_matrix_product(kind: torch.dtype) -> None:
    """As LLaVA-PruMerge has it: every kept token takes of several, and a token may go into several."""
    generator = torch.Generator().manual_seed(0)
    images, tokens, count, neighbours = 3, 20, 6, 4
    kept = torch.stack([torch.randperm(tokens, generator=generator)[:count].sort()[0] for _ in range(images)])
    near = torch.rand(images, count, tokens, generator=generator).topk(neighbours).indices
    source = torch.cat([kept, near.flatten(1), torch.zeros(images, 1, dtype=torch.long)], 1)
    slots = torch.arange(count).expand(images, -1)
    dropped = torch.full((images, 1), count)
    owner = torch.cat([slots, slots.repeat_interleave(neighbours, 1), dropped], 1)
    share = torch.rand(owner.shape, generator=generator)
    selection = Selection(kept, owner, share, source)
    values = torch.randn(images, tokens, 5, generator=generator).to(kind)
    before = torch.randint(1, 5, (images, tokens), generator=generator).float()
    matrix = dense(selection, tokens)
    found = selection.apply(values)
    assert found.dtype == kind
    tolerance = 1e-5 if kind == torch.float32 else 0.05
    np.testing.assert_allclose(found.float(), matrix @ values.float().numpy(), atol=tolerance, rtol=tolerance)
    edges = dense(selection._replace(share=torch.ones_like(share)), tokens)
    np.testing.assert_allclose(selection.sizes(), edges.sum(-1))
    np.testing.assert_allclose(selection.sizes(before), (edges @ before.unsqueeze(-1).numpy())[..., 0])


def test_edges_from_every_token_need_no_source() -> None:
    selection = Selection(torch.tensor([[1, 3]]), torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0.5, 0.5, 1, 1]]))
    same = selection._replace(source=torch.arange(4)[None])
    values = torch.tensor([[[1.0], [3], [100], [7]]])
    assert selection.apply(values).flatten().tolist() == same.apply(values).flatten().tolist() == [2, 7]
    assert selection.sizes().tolist() == same.sizes().tolist() == [[2, 1]]


# rules


def nearest_by_hand(kept: list[int], features: np.ndarray) -> np.ndarray:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    owner = {token: slot for slot, token in enumerate(kept)}
    for token in set(range(len(features))) - set(kept):
        owner[token] = max(range(len(kept)), key=lambda slot: (unit[token] @ unit[kept[slot]], -slot))
    merged = [[features[t] for t in range(len(features)) if owner[t] == slot] for slot in range(len(kept))]
    return np.stack([np.mean(own, 0) for own in merged])


def squared(features: np.ndarray) -> np.ndarray:
    return ((features[:, None] - features[None]) ** 2).sum(-1)


def peaks_by_hand(features: np.ndarray, number: int) -> list[int]:
    distances = squared(features) / features.shape[1]
    density = [math.exp(-np.mean(sorted(row)[:NEIGHBOURS])) for row in distances]
    order = sorted(range(len(features)), key=lambda token: (-density[token], token))
    peaks = {}
    for place, token in enumerate(order):
        apart = min((distances[token, other] for other in order[:place]), default=max(distances[token]))
        peaks[token] = density[token] * math.sqrt(apart)
    return sorted(sorted(peaks, key=lambda token: (-peaks[token], token))[:number])


def clusters_by_hand(kept: list[int], pool: list[int], features: np.ndarray, number: int) -> tuple[list, np.ndarray]:
    own = features[pool]
    centres = [pool[each] for each in peaks_by_hand(own, number)]
    distances = squared(features)
    members: dict = {centre: [centre] for centre in centres}
    for token in set(pool) - set(centres):
        members[min(centres, key=lambda centre: (distances[token, centre], centre))].append(token)
    stay = sorted([*kept, *centres])
    return stay, np.stack([np.mean(features[members.get(token, [token])], 0) for token in stay])


def top(tokens: VisualTokens, image: int, count: int) -> list[int]:
    values = tokens.features[image, :, 0].tolist()
    return sorted(sorted(range(len(values)), key=lambda token: (-values[token], token))[:count])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layer", [0, 3])
def test_nearest_equals_the_loops(layer: int, seed: int) -> None:
    tokens = given(layer=layer, seed=seed)
    for count in range(1, tokens.index.shape[1] + 1):
        found = make_merging({"rule": "nearest"}).reduce(Given(), tokens, count)
        for image in range(3):
            kept = top(tokens, image, count)
            assert found.kept[image].tolist() == kept
            expected = nearest_by_hand(kept, tokens.features[image].numpy())
            np.testing.assert_allclose(found.apply(tokens.features)[image], expected, atol=1e-5)


def test_ties_go_to_the_earlier_kept_token() -> None:
    """Also between kept tokens that are duplicates of each other, each of which stays in its own place."""
    features = torch.tensor([[[9.0, 0], [9, 0], [0, 2], [3, 0], [0, 3], [1, 0]]])
    tokens = VisualTokens(0, Layout(((2, 3),)), torch.arange(6)[None], lambda: features, lambda request: features)
    found = make_merging({"rule": "nearest"}).reduce(Given(), tokens, 3)
    assert found.kept.tolist() == [[0, 1, 3]]
    assert found.owner.tolist() == [[0, 1, 0, 2, 0, 0]]  # none is more like token 2 and 4 than any other
    assert found.sizes().tolist() == [[4, 1, 1]]


def test_clusters_by_hand() -> None:
    """Two heaps and a straggler: the peaks are the middle of the heaps, and the straggler joins the nearer one."""
    line = [0.0, 1, 2, 3, 4, 20, 21, 22, 23, 24, 11]
    features = torch.tensor(line)[None, :, None] / 4
    assert cluster_centres(features, 2).tolist() == [[2, 7]]
    given_scores = torch.cat([torch.tensor([5.0, *[0] * 11])[None, :, None], torch.zeros(1, 12, 1)], -1)
    given_scores[0, 1:, 1] = features[0, :, 0]
    tokens = VisualTokens(0, Layout(((3, 4),)), torch.arange(12)[None], lambda: given_scores, lambda r: given_scores)
    found = make_merging({"rule": "clusters", "share": 2 / 3}).reduce(Given(), tokens, 3)
    assert found.kept.tolist() == [[0, 3, 8]] and found.sizes().tolist() == [[1, 6, 5]]
    merged = found.apply(given_scores)[0, :, 1] * 4
    np.testing.assert_allclose(merged, [0, (0 + 1 + 2 + 3 + 4 + 11) / 6, 22], atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.2, 0.45, 0.9])
def test_clusters_equal_the_loops(share: float, seed: int) -> None:
    tokens = given(seed=seed)
    for count in range(2, 30):
        number = min(max(1, round(share * count)), count - 1)
        found = make_merging({"rule": "clusters", "share": share}).reduce(Given(), tokens, count)
        for image in range(3):
            kept = top(tokens, image, count - number)
            pool = sorted(set(range(30)) - set(kept))
            stay, expected = clusters_by_hand(kept, pool, tokens.features[image].double().numpy(), number)
            assert found.kept[image].tolist() == stay
            np.testing.assert_allclose(found.apply(tokens.features)[image], expected, atol=1e-5)


def test_clusters_of_duplicates() -> None:
    features = torch.ones(2, 30, 8)
    tokens = VisualTokens(0, Layout(((5, 6),)), torch.arange(30).expand(2, -1), lambda: features, lambda r: features)
    for count in range(1, 31):
        found = make_merging({"rule": "clusters", "share": 0.5}).reduce(Given(), tokens, count)
        assert found.kept.shape == (2, count) and torch.equal(found.kept[0], found.kept[0].unique())
        torch.testing.assert_close(found.apply(features), torch.ones(2, count, 8))


def test_cells_are_recycling_and_none_is_none() -> None:
    for layer in (0, 3):
        tokens = given(layer=layer)
        left = tokens.index.shape[1]
        for count in range(1, left + 1):
            cells = make_merging({"rule": "cells", "cell": 2.5}).reduce(Given(), tokens, count)
            recycled = recycle_tokens(tokens.features[..., 0], tokens.index, tokens.layout.grids, count, 2.5)
            assert torch.equal(cells.apply(tokens.features), recycled.apply(tokens.features))
            none = make_merging({"rule": "none"}).reduce(Given(), tokens, count)
            assert none.owner is None and none.kept.tolist() == [top(tokens, image, count) for image in range(3)]


def test_none_takes_a_methods_own_merging_away() -> None:
    tokens = given()
    method = make_method({"name": "vflowopt", "recycling_cell": 2.0})
    evidence = VisualTokens(0, tokens.layout, tokens.index, lambda: tokens.features, lambda r: tokens.features[..., 0])
    assert method.reduce(evidence, 12).owner is not None
    found = make_merging({"rule": "none"}).reduce(method, evidence, 12)
    assert found.owner is None and found.kept[0].tolist() == top(tokens, 0, 12)


@rules
@pytest.mark.parametrize("layer", [0, 3])
def test_every_count_is_met_and_images_are_independent(fields: dict, layer: int) -> None:
    rule, tokens = make_merging(fields), given(layer=layer)
    left = tokens.index.shape[1]
    for count in range(1, left + 1):
        found = rule.reduce(Given(), tokens, count)
        merged, sizes = found.apply(tokens.features), found.sizes()
        assert found.kept.shape == (3, count)
        assert all(torch.equal(row, row.unique()) for row in found.kept)
        if sizes is not None:
            assert sizes.sum(1).tolist() == [left] * 3 and sizes.min() >= 1
            np.testing.assert_allclose(dense(found, left).sum(-1), 1, atol=1e-5)  # means
        for image in range(3):
            alone = rule.reduce(Given(), one(tokens, image), count)
            assert torch.equal(alone.kept[0], found.kept[image])
            torch.testing.assert_close(alone.apply(tokens.features[image : image + 1])[0], merged[image])


# with a model


SOME = ("llava_clip_full", "llava_onevision", "qwen2_vl", "gemma3", "qwen3_vl")


@rules
@pytest.mark.parametrize("name", SOME)
def test_rules_prune_exactly_and_rows_are_independent(name: str, fields: dict) -> None:
    model = tiny(name)
    base = config([(0, 0.6), (3, 0.5)])
    chosen = PruningConfig(**base.model_dump(exclude={"merging"}), merging=fields)
    plain = PruningConfig(**base.model_dump(exclude={"merging"}), merging={"rule": "none"})
    samples = mixed_samples(model)
    with prune(model, chosen) as pruner:
        together, report = model.generate(**batch(samples), max_new_tokens=3, do_sample=False), pruner.report
        for row, own in enumerate(samples):
            output = model.generate(**own, max_new_tokens=3, do_sample=False)
            assert torch.equal(output[0, -3:], together[row, -3:])
            if is_visual(own).any():
                kept = zip(pruner.report[0].kept, report[row].kept, strict=True)
                assert all(torch.equal(ours, theirs) for ours, theirs in kept)
    counts = [[len(kept) for kept in entry.kept] for entry in report]
    expected = [[len(kept) for kept in entry.kept] for entry in run_pruned(model, batch(samples), plain)[3]]
    assert counts == expected


@pytest.mark.parametrize("fields", [each for each in RULES if each["rule"] != "none"], ids=str)
def test_merged_tokens_are_weighed_in_every_layer(fields: dict) -> None:
    """Everything recomputed: means, and w · log n on their keys."""
    model, method = tiny("llava_siglip"), {"name": "uniform"}
    inputs, weight = sample(model, images=1), fields.get("weight", 0.0)
    steps = [{"layer": 0, "keep_ratio": 0.3}]
    chosen = PruningConfig(method=method, schedule=steps, merging=fields)
    hidden, _, _, [entry] = run_pruned(model, inputs, chosen)
    visual = is_visual(inputs)[0].nonzero()[:, 0]
    states = model.get_input_embeddings()(inputs["input_ids"])[0].clone()
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    layout = Layout(((8, 8),))
    tokens = VisualTokens(0, layout, torch.arange(64)[None], lambda: features[None], lambda r: features)
    found = chosen.reduce(tokens, len(entry.kept[0]))
    assert visual[found.kept[0]].tolist() == entry.kept[0].tolist()
    matrix = torch.from_numpy(dense(found, 64)[0]).float()
    states[visual[found.kept[0]]] = matrix @ features
    bias = torch.zeros(len(states))
    bias[visual[found.kept[0]]] = weight * (matrix > 0).sum(1).float().log()
    left = (~is_visual(inputs)[0]).nonzero()[:, 0].tolist() + entry.kept[0].tolist()
    alive = [sorted(left)] * len(text_model(model).layers)
    expected = decoder(text_model(model), states, range(len(states)), bias, alive)
    torch.testing.assert_close(hidden[0], expected, atol=1e-4, rtol=1e-4)
    if weight:
        other = decoder(text_model(model), states, range(len(states)), bias * 0, alive)
        assert (other - expected).abs().max() > 1e-2  # the test has teeth


# configs


@rules
def test_configs_round_trip(fields: dict, tmp_path: Path) -> None:
    base = config([(0, 0.5), (2, 0.5)], name="uniform")
    chosen = PruningConfig(**base.model_dump(exclude={"merging"}), merging=fields)
    loaded = PruningConfig.from_pretrained(chosen.save_pretrained(tmp_path))
    assert loaded == chosen and loaded.merging.model_dump() == chosen.merging.model_dump()
    assert loaded.merged_weight == fields.get("weight", 0.0) and loaded.exact
    assert type(loaded.merging) is MergingRule.registry[fields["rule"]]


def test_a_config_without_merging_has_its_methods_own() -> None:
    chosen = config(recycling_cell=3.0, recycling_weight=0.5, recycling_count="released")
    assert chosen.merging is None and chosen.merged_weight == 0.5 and not chosen.exact
    other = chosen.model_copy(update={"merging": make_merging({"rule": "nearest"})})
    assert other.merged_weight == 0 and other.exact


@pytest.mark.parametrize(
    ("method", "merging", "message"),
    [
        ({"name": "divprune"}, {"rule": "cells"}, r"'cells' ranks tokens .* divprune has none: choose nearest"),
        ({"name": "uniform"}, {"rule": "melt"}, r"no merging rule 'melt': choose one of cells, clusters, nearest"),
        ({"name": "uniform"}, {"rule": "clusters", "share": 0}, r"merging\.share"),
        ({"name": "uniform"}, {"rule": "nearest", "cell": 3}, r"merging\.cell"),
        ({"name": "uniform"}, {"rule": "none", "weight": 1}, r"merging\.weight"),
        ({"name": "uniform"}, {"share": 0.2}, r"no merging rule None"),
    ],
    ids=str,
)
def test_combinations_that_make_no_sense_are_refused(method: dict, merging: dict, message: str) -> None:
    with pytest.raises(FlowpruneError, match=message):
        PruningConfig(method=method, schedule=[{"layer": 0, "keep_ratio": 0.5}], merging=merging)


def test_flash_takes_no_weight() -> None:
    model = tiny("llava_siglip", "fake_flash")
    steps = [{"layer": 0, "keep_ratio": 0.5}]
    fields: dict[str, Any] = {"method": {"name": "uniform"}, "schedule": steps}
    chosen = PruningConfig(**fields, merging={"rule": "nearest", "weight": 1.0})
    with pytest.raises(FlowpruneError, match="weight of merged tokens needs an additive mask"), prune(model, chosen):
        pass
    with prune(model, PruningConfig(**fields, merging={"rule": "nearest"})) as pruner:
        model(**sample(model))
    assert len(pruner.report[0].kept[0]) == math.floor(0.5 * len(tokens_of(model, sample(model))[0]) + 0.5)
