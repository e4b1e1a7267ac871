"""What an engine can serve: refusals by name, and the nearest config by hand."""

import pytest

from multimodal import FlowpruneError, PruningConfig, PruningStep
from multimodal.adaptive import Adaptive
from multimodal.costs import prefill_flops, retention
from multimodal.layout import Layout
from multimodal.serving.limits import STOCK_VLLM, VLLM, check_servable, nearest_servable, one_step_ratio


def _config(method: dict, *steps: tuple[int, float], **more: object) -> PruningConfig:
    schedule = [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in steps]
    return PruningConfig(method=method, schedule=schedule, **more)


THREE_TENTHS = _config({"name": "vflowopt", "recycling_weight": 0.8}, (0, 0.3), (9, 0.8))


def test_one_step_has_the_retention_that_a_schedule_has():
    # 24 layers: 9 see 0.3 of the tokens, 15 see 0.3 · 0.8 = 0.24: (2.7 + 3.6) / 24
    assert one_step_ratio(THREE_TENTHS.schedule, 24) == pytest.approx(0.2625)
    # FastV's step before layer 2 of 32: 2 layers see all, 30 see a half: 17 / 32
    assert one_step_ratio([PruningStep(layer=2, keep_ratio=0.5)], 32) == pytest.approx(17 / 32)
    assert one_step_ratio([PruningStep(layer=0, keep_ratio=0.125)], 4) == 0.125


def test_the_nearest_config_costs_no_more(tiny_text_config):
    layout, layers = Layout(((20, 20),)), tiny_text_config.num_hidden_layers
    config = _config({"name": "divprune"}, (0, 0.5), (2, 0.3))  # 4 layers: (2 · 0.5 + 2 · 0.15) / 4 = 0.325
    nearest = nearest_servable(config, layers)
    assert [(step.layer, step.keep_ratio) for step in nearest.schedule] == [(0, pytest.approx(0.325))]
    assert retention([layout], nearest.schedule, layers) == retention([layout], config.schedule, layers) == 0.325
    assert prefill_flops(tiny_text_config, [130] * 4) < prefill_flops(tiny_text_config, [200, 200, 60, 60])


@pytest.fixture
def tiny_text_config():
    from transformers import Qwen2Config

    return Qwen2Config(num_hidden_layers=4, hidden_size=32, num_attention_heads=4, intermediate_size=64)


def test_a_refusal_names_what_and_the_nearest():
    with pytest.raises(FlowpruneError) as refused:
        check_servable(THREE_TENTHS, 24, STOCK_VLLM)
    assert str(refused.value) == (
        "A stock vLLM cannot serve steps before layers [0, 9] (it takes one, before the language model), merged tokens "
        "of weight 0.8 (it knows none) or original positions (it gives compact ones): the nearest config that it can "
        "has one step at layer 0 with keep_ratio 0.2625 (the same retention), method.recycling_weight 0 and positions "
        "compact."
    )


@pytest.mark.parametrize("limits", [VLLM, STOCK_VLLM])
@pytest.mark.parametrize(
    "config",
    [
        THREE_TENTHS,
        _config({"name": "divprune"}, (0, 0.2), merging={"rule": "nearest", "weight": 1.0}),
        _config({"name": "vscan"}, (0, 0.3), (2, 0.3), positions="compact"),
    ],
)
def test_the_nearest_config_is_servable(config, limits):
    nearest = nearest_servable(config, 4, limits)
    check_servable(nearest, 4, limits)
    assert nearest.method.name == config.method.name
    assert nearest_servable(nearest, 4, limits) == nearest


def test_methods_that_read_the_language_model_are_refused():
    with pytest.raises(FlowpruneError, match=r"method fastv, .*: choose a method .*keep_ratio 0\.5 "):
        check_servable(_config({"name": "fastv"}, (1, 1 / 3)), 4)  # (1 + 3 / 3) / 4


@pytest.mark.parametrize(
    "config",
    [
        _config({"name": "flowcut"}, (0, 0.2)),  # prunes inside the tower
        _config({"name": "vflowopt", "recycling_weight": 0.0}, (0, 0.2)),  # merges
        _config({"name": "vflowopt", "recycling_cell": None, "recycling_weight": 0.7}, (0, 0.2)),  # merges nothing
        _config({"name": "divprune"}, (0, 0.2), adaptive=Adaptive(strength=2, reference=0.4)),
        _config({"name": "cdpruner"}, (0, 0.2), merging={"rule": "clusters"}),
    ],
)
def test_what_is_decided_before_the_language_model_is_free(config):
    check_servable(config, 4)
    assert nearest_servable(config, 4) is config
