"""Exports for engines, against arithmetic by hand; what they cannot express is refused with the nearest arguments."""

import json

import pytest

from multimodal import FlowpruneError, PruningConfig, PruningStep
from multimodal.adaptive import Adaptive
from multimodal.config import Budget, TunedModel
from multimodal.serving.targets.openvino import openvino_arguments
from multimodal.serving.targets.pixels import largest_cap, pixels_arguments
from multimodal.serving.targets.tensorrt_edge import tensorrt_edge_arguments
from multimodal.serving.targets.vllm_video import vllm_video_arguments

QWEN = TunedModel(id="q", architecture="Qwen2_5_VLForConditionalGeneration", layers=28)
LLAVA = TunedModel(id="l", architecture="LlavaForConditionalGeneration", layers=28)


def _config(method: dict, *steps: tuple[int, float], **more: object) -> PruningConfig:
    schedule = [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in steps]
    return PruningConfig(method=method, schedule=schedule, **more)


CDPRUNER = {"name": "cdpruner"}


@pytest.mark.parametrize(
    ("relevance", "weight"),
    [(None, 1.0), (0.0, 0.0), (0.5, 0.5)],  # as published r as it is; diversity alone; exp(θ / (2 (1 − θ)) · r)
)
def test_openvino(relevance, weight):
    found = openvino_arguments(_config({**CDPRUNER, "relevance": relevance}, (0, 0.25)), 28)
    assert found.arguments == {"pruning_ratio": 75, "relevance_weight": weight} and found.keep_ratio == 0.25
    assert found.commands[0].endswith(f"--pruning_ratio 75 --relevance_weight {weight:g}")
    assert bool(found.remarks) == (relevance == 0.5)


@pytest.mark.parametrize(
    ("ratio", "asked", "pruned"),
    [
        (0.2, None, 80),
        (0.205, None, 80),  # keeps no more than the config: 20 %, not 21 %
        (0.0996, 0.1, 90),  # what whole tokens left of the budget is given back
        (0.0996, None, 91),
        (0.001, None, 99),
    ],
)
def test_openvino_takes_whole_percent(ratio, asked, pruned):
    budget = None if asked is None else Budget(asked=asked, met=ratio)
    assert openvino_arguments(_config(CDPRUNER, (0, ratio), budget=budget), 28).arguments["pruning_ratio"] == pruned


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (_config({"name": "divprune"}, (0, 0.3), (9, 0.8)), "the method divprune"),
        (_config(CDPRUNER, (0, 0.3), (9, 0.8)), r"steps before layers \[0, 9\]"),
    ],
)
def test_openvino_refuses_with_the_nearest(config, what):
    # 24 layers: (9 · 0.3 + 15 · 0.24) / 24 = 0.2625, so 74 % go
    with pytest.raises(FlowpruneError, match=rf"not {what}: .* pruning_ratio=74, which has the same retention\."):
        openvino_arguments(config, 24)


def test_engines_know_neither_merging_nor_budgets_that_adapt():
    more = {"merging": {"rule": "nearest"}, "adaptive": Adaptive(strength=1, reference=0.5)}
    with pytest.raises(FlowpruneError, match="not the merging rule nearest and budgets that adapt"):
        openvino_arguments(_config(CDPRUNER, (0, 0.3), **more), 24)


def test_tensorrt_edge(tmp_path):
    config = _config({"name": "dart", "visual_pivots": 6, "text_pivots": 2}, (2, 0.125), model=QWEN)
    found = tensorrt_edge_arguments(config, 28)
    # 2 layers see all, 26 an eighth: 5.25 / 28 = 0.1875
    assert found.arguments == {
        "visualPrune": True,
        "dartReductionRatio": 0.8125,
        "dartPivotImageTokens": 6,
        "dartPivotTextTokens": 2,
    }
    assert found.commands[0].endswith(
        "--visualPrune --dartReductionRatio 0.8125 --dartPivotImageTokens 6 --dartPivotTextTokens 2"
    )
    written = json.loads(found.save(tmp_path).read_text())
    assert written["retention"] == written["keep_ratio"] == 0.1875
    assert (tmp_path / "tensorrt-edge.json").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            _config({"name": "fastv"}, (2, 0.125), model=QWEN),
            r"the method fastv: .*--dartReductionRatio 0\.8125, which",
        ),
        (_config({"name": "dart"}, (2, 0.5), (4, 0.5), model=QWEN), r"steps before layers \[2, 4\]: .*Ratio 0\.6786"),
        (_config({"name": "dart"}, (2, 0.5), model=LLAVA), r"is for LlavaForConditionalGeneration: serve it with"),
        (_config({"name": "dart"}, (2, 0.5), model=QWEN, positions="compact"), r"search\.positions=\[original\]"),
        (_config({"name": "dart"}, (2, 1.0), model=QWEN), r"the config keeps everything"),
    ],
)
def test_tensorrt_edge_refuses(config, message):
    # two halvings: 2 + 2 · 0.5 + 24 · 0.25 = 9 of 28, so 0.67857 go
    with pytest.raises(FlowpruneError, match=message):
        tensorrt_edge_arguments(config, 28)


def test_vllm_video():
    found = vllm_video_arguments(_config({"name": "divprune"}, (0, 0.3), model=QWEN), 28)
    assert found.arguments == {"video_pruning_rate": 0.7, "video_pruning_method": "evs"}
    assert found.commands == ("vllm serve MODEL --video-pruning-rate 0.7 --video-pruning-method evs",)
    newer = QWEN.model_copy(update={"architecture": "Qwen3VLForConditionalGeneration"})
    assert len(vllm_video_arguments(_config({"name": "divprune"}, (0, 0.3), model=newer), 28).commands) == 2
    with pytest.raises(FlowpruneError, match="is for LlavaForConditionalGeneration: export it for target=vllm"):
        vllm_video_arguments(_config({"name": "divprune"}, (0, 0.3), model=LLAVA), 28)


@pytest.mark.parametrize(
    ("tokens", "share", "most"),
    [
        ([100, 100], 0.25, 25),
        ([10, 100, 190], 0.3, 40),  # 90 tokens in all: 10 + 40 + 40
        ([10, 100, 190], 1.0, 190),
        ([300], 0.001, 1),
        ([7, 8, 9], 0.5, 4),  # 12 of 24
    ],
)
def test_a_cap_of_tokens(tokens, share, most):
    assert largest_cap(tokens, share) == most
    assert sum(min(each, most) for each in tokens) <= max(share * sum(tokens), len(tokens))
    assert share == 1.0 or sum(min(each, most + 1) for each in tokens) > share * sum(tokens)


def test_pixels():
    config = _config({"name": "vflowopt"}, (0, 0.3))
    found = pixels_arguments(config, 28, [10, 100, 190], side=28, least=3136)
    # 40 tokens of 28 · 28 pixels; a picture of 56 · 56 pixels has 4 tokens
    assert found.arguments == {"max_pixels": 31360, "min_pixels": 3136, "image_max_tokens": 40}
    assert found.commands == (
        'vllm serve MODEL --mm-processor-kwargs \'{"max_pixels": 31360, "min_pixels": 3136}\'',
        "llama-server -m MODEL.gguf --mmproj MMPROJ.gguf --image-max-tokens 40",
    )
    assert found.keep_ratio == 0.3
    assert pixels_arguments(config, 28, [100], side=32, least=65536).arguments["min_pixels"] == 30 * 32**2
    with pytest.raises(FlowpruneError, match=r"pictures of one size.*at a keep_ratio of 0\.3 before"):
        pixels_arguments(config, 28, [576], side=None)


def test_a_processor_makes_no_more_tokens_than_the_cap():
    transformers = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    cap = pixels_arguments(_config({"name": "vflowopt"}, (0, 0.1)), 28, [400], side=28, least=3136).arguments
    for height, width in ((560, 560), (1000, 300), (280, 1400), (63, 63)):
        rows, columns = transformers.smart_resize(height, width, 28, cap["min_pixels"], cap["max_pixels"])
        assert (rows // 28) * (columns // 28) <= cap["image_max_tokens"] == 40
