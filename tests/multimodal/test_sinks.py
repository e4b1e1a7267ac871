"""Attention sinks, against attention computed whole, row by row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from multimodal import PruningConfig, importance, prune
from multimodal.evidence import (
    AttentionSinks,
    ClassAttention,
    ContextRelevance,
    GlobalAttention,
    LayerAttention,
    PatchEntropy,
    ReceivedAttention,
    TowerViews,
    VisionEvidence,
)
from multimodal.families import modules_of
from multimodal.importance import calibrated
from multimodal.runtime.sinks import language_sinks
from multimodal.sinks import SINK, column_means, sink_share
from multimodal.testing.oracles import MEAN, STD, tiny
from multimodal.testing.tiny_models import is_visual, sample

HEADS, TOKENS, WIDTH, CLASS_TOKENS = 3, 17, 4, 1


def compared(seed: int = 0) -> LayerAttention:
    """Two views in which some tokens receive a lot, in some heads."""
    generator = torch.Generator().manual_seed(seed)
    queries, keys, values = torch.randn(3, 2, HEADS, TOKENS, WIDTH, generator=generator)
    queries[..., 0] = 3.0
    keys[:, :2, [4, 9], 0] = 3.0  # sinks in two of the heads
    keys[:, 1, 0, 0] = 4.0  # the class token is one, too
    return LayerAttention(queries, keys, values, 0.5)


def views(class_tokens: int = CLASS_TOKENS) -> TowerViews:
    return TowerViews((0, 1), {-1: compared()}, {}, None, None, class_tokens)


def calibrated_by_rows(attention: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """ACT, one row after the other: ``[heads, rows, N]`` and ``[heads, N]``."""
    found = attention.copy()
    for head in range(len(attention)):
        for row in found[head]:
            freed = sum(0.6 * row[k] for k in np.flatnonzero(sinks[head]))
            others = row[~sinks[head]].sum()
            for k in range(len(row)):
                row[k] = 0.4 * row[k] if sinks[head][k] else row[k] + freed * row[k] / others
    return found


def whole(view: int) -> np.ndarray:
    """One view's attention, head by head ``[heads, N, N]``."""
    own = compared()
    logits = np.einsum("hid,hjd->hij", own.queries[view].double().numpy(), own.keys[view].double().numpy())
    weights = np.exp(logits * own.scaling)
    return weights / weights.sum(-1, keepdims=True)


def sinks_of(attention: np.ndarray, class_tokens: int = CLASS_TOKENS) -> np.ndarray:
    sinks = attention.mean(1) > SINK
    sinks[:, :class_tokens] = False
    return sinks


@pytest.mark.parametrize("causal", [False, True])
def test_column_means_count_only_the_queries_that_can_see_a_token(causal: bool, monkeypatch) -> None:
    monkeypatch.setitem(importance.CHUNK_ELEMENTS, "cpu", 4 * HEADS * TOKENS)  # a few rows at a time
    own = compared()
    found = column_means(own.queries, own.keys, own.scaling, causal)
    for view in range(2):
        for head in range(HEADS):
            for k in range(TOKENS):
                weights = []
                for i in range(k if causal else 0, TOKENS):
                    last = i + 1 if causal else TOKENS
                    logits = (own.keys[view, head, :last] @ own.queries[view, head, i] * own.scaling).double().numpy()
                    weights.append(np.exp(logits[k]) / np.exp(logits).sum())
                assert found[view, head, k] == pytest.approx(np.mean(weights), abs=1e-6)
    share = sink_share(found, 0.1)
    assert torch.equal(share, torch.stack([(found[view] > 0.1).sum(0) / HEADS for view in range(2)]))


def test_calibrated_rows_sum_to_one_and_give_what_sinks_lose_in_proportion() -> None:
    attention, sinks = whole(0), sinks_of(whole(0))
    assert sinks.any() and not sinks.all()
    found = calibrated(torch.from_numpy(attention), torch.from_numpy(sinks)).numpy()
    np.testing.assert_allclose(found, calibrated_by_rows(attention, sinks), atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 1)
    nothing = torch.zeros(HEADS, TOKENS, dtype=torch.bool)
    assert torch.equal(calibrated(torch.from_numpy(attention), nothing), torch.from_numpy(attention))


@pytest.mark.parametrize("class_tokens", [0, 1])
@pytest.mark.parametrize("mode", ["kept", "masked", "calibrated"])
def test_statistics_see_sinks_as_asked(mode: str, class_tokens: int) -> None:
    seen = views(class_tokens)
    for view in range(2):
        attention = whole(view)
        received = attention.mean((0, 1))
        sinks = sinks_of(attention, class_tokens)
        changed = calibrated_by_rows(attention, sinks) if mode == "calibrated" else attention
        masked = (received > SINK)[class_tokens:] if mode == "masked" else np.zeros(TOKENS - class_tokens, bool)
        assert mode != "masked" or masked.any()

        def check(request, expected: np.ndarray, masked=masked, view=view) -> None:
            found = VisionEvidence.of(seen, [request]).answer(request)[view]
            np.testing.assert_allclose(found, np.where(masked, 0, expected[class_tokens:]), atol=1e-6)

        columns, row = changed.mean((0, 1)), changed[:, 0].mean(0)
        check(ReceivedAttention(-1, sinks=mode), columns)
        check(GlobalAttention(-1, sinks=mode), row if class_tokens else columns)
        if class_tokens:
            check(ClassAttention(-1, sinks=mode), row)
        query_set = received > 1.1 * received.mean()
        check(ContextRelevance(-1, 1.1, sinks=mode), changed[:, query_set].mean((0, 1)))
        ranged = ContextRelevance(-1, 0.2, 3.0, sinks=mode)
        evidence = VisionEvidence.of(seen, [ranged])
        found = evidence.answer(ContextRelevance(-1, 1.1, sinks=mode))[view]
        expected = changed[:, query_set].mean((0, 1))[class_tokens:]
        np.testing.assert_allclose(found, np.where(masked, 0, expected), atol=1e-6)
    assert not ranged.covers(ContextRelevance(-1, 1.1, sinks="masked" if mode != "masked" else "kept"))


def test_pictures_are_given_the_share_of_heads() -> None:
    found = VisionEvidence.of(views(), [AttentionSinks(-1)]).answer(AttentionSinks(-1))
    for view in range(2):
        np.testing.assert_allclose(found[view], (whole(view).mean(1) > SINK).mean(0)[CLASS_TOKENS:])


def test_a_config_says_how_any_method_sees_sinks() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=1)
    modules, requests = modules_of(model), []
    for sinks in ("kept", "masked", "calibrated"):
        for method in ({"name": "vflowopt", "query_threshold": 0.5, "entropy_weight": 0.5}, {"name": "fastervlm"}):
            config = PruningConfig(
                method=method, schedule=[{"layer": 0, "keep_ratio": 0.3}], sinks=sinks, image_mean=MEAN, image_std=STD
            )
            assert PruningConfig(**config.model_dump()) == config
            requests += config.vision_requests
            with prune(model, config) as pruner:
                model(**inputs)
                assert len(pruner.report[0].kept[0]) == round(0.3 * int(is_visual(inputs).sum()))
    assert len(set(requests)) == 3 + 3 + 1 and PatchEntropy(softmax=True) in requests
    assert modules.model is model


def test_sinks_of_the_language_model_over_layers_and_heads() -> None:
    model = tiny("llava_clip", "eager")
    inputs = sample(model, images=1)
    attentions: tuple[Tensor, ...] = model(**inputs, output_attentions=True).attentions
    expected = []
    for layer in attentions:
        weights = layer[0].double()
        length = weights.shape[-1]
        means = torch.stack([weights[:, k:, k].mean(-1) for k in range(length)], -1)
        expected.append((means > 0.04).double().mean(0))
    found = language_sinks(modules_of(model), inputs, 0.04)
    torch.testing.assert_close(found.double(), torch.stack(expected).mean(0), atol=1e-6, rtol=0)
    assert 0 < (found > 0).sum() < len(found)
