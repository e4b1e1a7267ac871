"""Rows carry positions exactly in every dtype, and vLLM is asked for models that read them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlavaConfig

from multimodal import FlowpruneError
from multimodal.serving.rows import LeftOfImage, columns, packed, unpacked
from multimodal.serving.vllm_arguments import hf_overrides, vllm_arguments

NUMBERS = st.lists(st.integers(0, 65535), min_size=1, max_size=9)


@given(NUMBERS, st.sampled_from([1, 3]), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_positions_survive_every_dtype(numbers, axes, dtype):
    positions = torch.tensor([numbers] * axes).roll(1, 0)
    left = LeftOfImage(torch.randn(len(numbers), 5).to(dtype), positions, max(numbers), 99)
    rows = packed(left)
    assert rows.dtype == dtype and rows.shape == (len(numbers), 5 + columns(axes))
    assert torch.equal(rows[:, :5], left.features)
    found, span = unpacked(rows, axes)
    assert torch.equal(found, positions) and span == max(numbers)


def test_vllm_is_asked_for_three_equal_axes():
    config = AutoConfig.for_model("llava", architectures=["LlavaForConditionalGeneration"])
    config.text_config.head_dim = 128
    found = hf_overrides(config)
    assert found["architectures"] == ["FlowpruneLlavaForConditionalGeneration"]
    rope = found["text_config"]["rope_parameters"]
    assert sum(rope["mrope_section"]) == 64 and len(rope["mrope_section"]) == 3
    assert rope.items() >= config.text_config.rope_parameters.items()
    assert json.loads(vllm_arguments(config)[-1]) == found


def test_several_axes_are_left_as_they_are():
    config = AutoConfig.for_model("qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"])
    assert hf_overrides(config) == {"architectures": ["FlowpruneQwen2_5_VLForConditionalGeneration"]}


def test_what_the_plugin_cannot_do_is_refused():
    config = LlavaConfig(architectures=["LlavaForConditionalGeneration"])
    config.text_config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4}
    with pytest.raises(FlowpruneError, match=r"is scaled .llama3.*engine=transformers"):
        hf_overrides(config)
    with pytest.raises(FlowpruneError, match="vLLM has no dinov2 tower for LlavaForConditionalGeneration"):
        hf_overrides(LlavaConfig(vision_config={"model_type": "dinov2"}, architectures=config.architectures))
    with pytest.raises(FlowpruneError, match="has no model in the vLLM plugin"):
        hf_overrides(AutoConfig.for_model("gemma3", architectures=["Gemma3ForConditionalGeneration"]))
