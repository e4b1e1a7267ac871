"""How much a calibration sample holds where images are large: what was asked, not the square of the tokens."""

import pytest
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

from multimodal.families import modules_of
from search.calibration import CalibrationSample, observe_sample
from search.choice import MethodChoice

WIDTH, LIMIT = 3584, 120e6  # of the 7B models' embeddings; bytes
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
NORMALIZATION = ((0.5,) * 3, (0.5,) * 3)


def onevision() -> CalibrationSample:
    """The published tower's grid, anyres-9: 16 tiles and the base view, shrunk to 7,371 visual tokens."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=1, image_size=384, patch_size=14
    )
    config = LlavaOnevisionConfig(vision_config=vision, text_config={"model_type": "qwen2", **TEXT}, image_token_id=7)
    modules = modules_of(LlavaOnevisionForConditionalGeneration(config).eval())
    return observed(modules, modules.geometry.random_image((1536, 1536)))


def qwen() -> CalibrationSample:
    """9,216 patches, 2,304 visual tokens."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "depth": 3, "num_heads": 1, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [0, 1, 2]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": rope}, image_token_id=7)
    modules = modules_of(Qwen2_5_VLForConditionalGeneration(config).eval())
    return observed(modules, modules.geometry.random_image((1344, 1344)))


def observed(modules, pixels) -> CalibrationSample:
    number = sum(layout.visual_tokens for layout in modules.geometry.layouts(pixels))
    ids = torch.tensor([[9, *[7] * number, 10]])
    inputs = pixels | modules.geometry.token_inputs(ids) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return observe_sample(modules, inputs, MethodChoice("vflowopt").vision_requests, NORMALIZATION)


@pytest.mark.parametrize(("made", "tokens"), [(onevision, 7371), (qwen, 2304)])
def test_a_sample_of_a_large_image_is_small(made, tokens):
    sample = made()
    assert int(sample.is_visual.sum()) == tokens
    evidence = sum(tensor.nbytes for seen in sample.evidence for tensor in seen.tensors().values())
    assert evidence + len(sample.embeds) * WIDTH * 2 < LIMIT
    assert {request.layer for seen in sample.evidence for request in seen.stored if hasattr(request, "layer")} == {
        -3,
        -2,
        -1,
    }
