"""Counts, retention, FLOPs and KV bytes, by hand and against real caches."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Gemma3TextConfig, Qwen2Config
from transformers.utils import ModelOutput

from multimodal import PruningStep, costs, prune
from multimodal.families import geometry_of
from multimodal.layout import Layout
from multimodal.plan import kept_counts, visual_tokens_by_layer
from multimodal.runtime.prompt import locate
from multimodal.runtime.watch import Encoded
from multimodal.testing.oracles import config, tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, LAYERS, batch, sample

QWEN2_7B = Qwen2Config(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
)
TEN = Layout(grids=((2, 5),))
ROWS = Layout(grids=((2, 2), (3, 4)), newlines=(8, 13, 18))  # 4 + 3 · (4 + newline) = 19


def steps(*schedule: tuple[int, float]) -> list[PruningStep]:
    return [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in schedule]


@pytest.mark.parametrize(
    ("layout", "schedule", "counts"),
    [
        (TEN, [(0, 0.5), (2, 0.5), (3, 0.5)], [5, 3, 2]),  # 2.5 and 1.5 go up
        (TEN, [(0, 1.0)], [10]),
        (TEN, [(1, 0.24)], [2]),
        (TEN, [(1, 0.01), (2, 0.01)], [1, 1]),  # one token always stays
        (ROWS, [(0, 0.5), (1, 0.4)], [10, 4]),
        (ROWS, [(0, 0.1)], [4]),  # and every newline token
        (ROWS, [(0, 0.1), (1, 0.1)], [4, 4]),
    ],
)
def test_kept_counts(layout: Layout, schedule: list, counts: list) -> None:
    assert kept_counts(layout, steps(*schedule)) == counts


def test_retention_by_hand() -> None:
    schedule = steps((0, 0.5), (2, 0.4))
    assert visual_tokens_by_layer(TEN, schedule, 4) == [5, 5, 2, 2]
    assert costs.retention([TEN], schedule, 4) == (5 + 5 + 2 + 2) / 40
    # 19 → 10 (9.5 goes up) → 4; both images together
    assert costs.retention([TEN, ROWS], schedule, 4) == (14 + 10 + 10 + 4 + 4) / (40 + 4 * 19)
    assert visual_tokens_by_layer(TEN, steps((3, 0.5)), 4) == [10, 10, 10, 5]
    assert costs.retention([TEN], [], 4) == 1.0


@pytest.mark.parametrize(
    ("ratios", "published"),
    [((0.7233, 0.7487, 0.487), 0.501), ((0.2651, 0.9833, 0.8773), 0.251), ((0.1166, 1, 0.6011), 0.1)],
)
def test_retention_of_the_published_configs(ratios: tuple, published: float) -> None:
    schedule = steps(*zip((0, 9, 18), ratios, strict=True))
    assert costs.retention([Layout(grids=((54, 54),))], schedule, 28) == pytest.approx(published, abs=1e-3)


grids = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)
schedules = st.lists(st.tuples(st.integers(0, 6), st.floats(0.01, 1)), min_size=1, max_size=4, unique_by=lambda s: s[0])


@given(st.lists(st.tuples(grids, st.integers(0, 5)), min_size=1, max_size=3), schedules)
def test_retention_equals_a_loop(images: list, schedule: list) -> None:
    schedule = sorted(schedule)
    layouts = [Layout(grids=tuple(parts), newlines=tuple(range(newlines))) for parts, newlines in images]
    seen = total = 0
    for (parts, newlines), layout in zip(images, layouts, strict=True):
        left = all_tokens = sum(rows * columns for rows, columns in parts) + newlines
        ratios = dict(schedule)
        for layer in range(7):
            if layer in ratios:
                left = min(left, max(math.floor(left * ratios[layer] + 0.5), newlines + 1))
            seen += left
            total += all_tokens
        assert kept_counts(layout, steps(*schedule))[-1] == left
    assert costs.retention(layouts, steps(*schedule), 7) == seen / total


def test_a_published_model_by_hand() -> None:
    # keys and values: 2 · 4 heads · 128 · 2 bytes = 2048 bytes a token and layer
    assert costs.kv_bytes(QWEN2_7B, [1] * 28) == 28 * 2048
    assert costs.kv_bytes(QWEN2_7B, [100, 50], element_bytes=4) == 150 * 4096
    # queries, output: 3584² each; keys, values: 3584 · 512 each; MLP: 3 · 3584 · 18944
    weights = 2 * 12_845_056 + 2 * 1_835_008 + 203_685_888
    assert weights * 28 == 6_525_288_448  # the 6.5 billion that are not embeddings
    attention = 1000 * 1000 // 2 * 4 * 3584  # half of the pairs, two products of width 3584, two operations
    assert costs.prefill_flops(QWEN2_7B, [1000]) == 2 * 1000 * weights + attention
    assert (
        costs.prefill_flops(QWEN2_7B, [1000, 1000, 10])
        == 2 * (2 * 1000 * weights + attention) + 2 * 10 * weights + 10 * 10 // 2 * 4 * 3584
    )


def test_estimate_by_hand() -> None:
    text = tiny("llava_clip").config.text_config
    chosen = config([(0, 0.5), (2, 0.4)])
    tokens = [7 + 5 + 10, 7 + 5 + 10, 7 + 2 + 4, 7 + 2 + 4, 7 + 2 + 4]
    estimate = costs.estimate(text, [TEN, ROWS], 7, chosen, element_bytes=4)
    assert estimate.kv_bytes == sum(tokens) * 2 * 2 * 8 * 4
    assert estimate.retention == (2 * 15 + 3 * 6) / (5 * 29)
    assert estimate.prefill_flops == sum(costs.prefill_flops(text, [n]) for n in tokens)
    full = costs.estimate(text, [TEN, ROWS], 7, element_bytes=4)
    assert (full.retention, full.kv_bytes) == (1.0, 5 * 36 * 2 * 2 * 8 * 4)


def test_flops_count_the_weights_of_a_layer() -> None:
    model = tiny("llava_siglip")
    [layer, *_] = model.model.language_model.layers
    weights = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    assert costs.prefill_flops(model.config.text_config, [1]) == 2 * weights + 2 * 32


def test_text_configs_without_grouped_heads() -> None:
    text = SimpleNamespace(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2)
    assert costs.kv_bytes(text, [3, 1]) == 4 * 2 * 4 * 8 * 2
    assert costs.prefill_flops(text, [1]) == 2 * (4 * 32 * 32 + 3 * 32 * 48) + 2 * 32


def test_shares_of_many_prompts() -> None:
    text = tiny("llava_clip").config.text_config
    prompts = [([TEN], 3), ([TEN, ROWS], 8), ([TEN], 3), ([ROWS], 3)]
    chosen = config([(1, 0.5)])
    shares = costs.Workload(text, prompts).shares(chosen.schedule)
    for name, share in (("prefill_flops", shares.flops_share), ("kv_bytes", shares.kv_share)):
        pruned = sum(getattr(costs.estimate(text, *prompt, chosen), name) for prompt in prompts)
        full = sum(getattr(costs.estimate(text, *prompt), name) for prompt in prompts)
        assert share == pytest.approx(pruned / full)
    assert shares.retention == costs.retention([TEN, TEN, ROWS, TEN, ROWS], chosen.schedule, LAYERS)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "fields", [{}, {"recycling_cell": 3.0}, {"recycling_cell": 3.0, "recycling_count": "released"}], ids=str
)
def test_the_real_cache_is_as_large(name: str, fields: dict) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    chosen = config(**fields)

    def size(output: ModelOutput) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in output[CACHE].layers)

    geometry, ids = geometry_of(model.config), inputs["input_ids"].numpy()
    found = locate(geometry, ids, ids >= 0, {"image": Encoded(geometry.layouts(inputs))})
    layouts = [image.layout for image in found.images]  # tiles that touch are one image
    text_tokens = inputs["input_ids"].shape[1] - sum(layout.visual_tokens for layout in layouts)
    estimated = costs.estimate(model.config.text_config, layouts, text_tokens, chosen, element_bytes=4)
    unpruned = costs.estimate(model.config.text_config, layouts, text_tokens, element_bytes=4)
    with prune(model, chosen) as pruner:
        pruned = size(model(**inputs))
        [entry] = pruner.report
        model(**batch([inputs, sample(model, images=1)]))
        assert pruner.report[0].kv_bytes == entry.kv_bytes  # padding is not counted
    assert entry.kv_bytes == pruned
    assert entry.kv_bytes_unpruned == size(model(**inputs)) == unpruned.kv_bytes
    if fields.get("recycling_count") != "released":
        assert (pruned, entry.retention) == (estimated.kv_bytes, estimated.retention)


@pytest.mark.parametrize(("tokens", "window"), [(5, 9), (9, 9), (30, 9), (30, 1)])
def test_sliding_windows_cost_what_they_show(tokens: int, window: int) -> None:
    text = Gemma3TextConfig(
        hidden_size=8,
        intermediate_size=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=3,
        num_hidden_layers=1,
        layer_types=["sliding_attention"],
        sliding_window=window,
    )
    pairs = sum(query - key < window for query in range(tokens) for key in range(query + 1))
    weights = 8 * 3 * (2 * 2 + 2 * 1) + 3 * 8 * 4
    diagonal = 2 * 2 * 3 * min(tokens, window) // 2  # half of it, as of a causal mask's
    assert costs.prefill_flops(text, [tokens]) == 2 * tokens * weights + 2 * 2 * 2 * 3 * pairs - 2 * diagonal
    assert costs.decoding_flops(text, [tokens]) == 2 * weights + 2 * 2 * 2 * 3 * min(tokens, window)
    assert costs.kv_bytes(text, [tokens], 2) == min(tokens, window - 1) * 2 * 1 * 3 * 2
