"""Tiny random models of every family, built from transformers' configs, and inputs for them. No network, no GPU."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_flash_attention_utils import _is_packed_sequence

IMAGE_TOKEN = 7
LAYERS = 5
# what this version of transformers calls a cache, as an argument and in outputs
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
# whether generate() encodes images before it copies and chunks prompts; if not, it mixes up the images of copied
# prompts that have several, and reads no image in chunks
ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(LlavaModel.forward).parameters

_text = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_vision = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 4,
    "initializer_range": 0.2,
}


def _llava(tower: object, text: object, strategy: str) -> PreTrainedModel:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=text,
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy=strategy,
        )
    )


def llava_clip() -> PreTrainedModel:
    return _llava(CLIPVisionConfig(**_vision), Qwen2Config(**_text), "default")


def llava_clip_full() -> PreTrainedModel:
    return _llava(CLIPVisionConfig(**_vision), Qwen2Config(**_text), "full")


def llava_siglip() -> PreTrainedModel:
    return _llava(SiglipVisionConfig(**_vision), LlamaConfig(**_text), "full")


def llava_dinov2() -> PreTrainedModel:
    return _llava(Dinov2Config(**_vision), Qwen2Config(**_text), "default")


def llava_onevision() -> PreTrainedModel:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**_vision),
            text_config=Qwen2Config(**_text),
            image_token_id=IMAGE_TOKEN,
            video_token_id=8,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [32, 96], [96, 32]],
        )
    )


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llava_clip": llava_clip,
    "llava_clip_full": llava_clip_full,
    "llava_siglip": llava_siglip,
    "llava_dinov2": llava_dinov2,
    "llava_onevision": llava_onevision,
}


def build(name: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = BUILDERS[name]().eval()
    if attention == "fake_flash":  # transformers would look for a kernel
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config._attn_implementation = attention
    else:
        model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]  # no model writes placeholders
    return model


def sample(model: PreTrainedModel, images: int = 1, text: int = 9, seed: int = 0, size: int = 0) -> dict:
    """Inputs of one sample whose images have text between them; ``size`` picks among the image sizes."""
    from multimodal.families import family_of

    generator = torch.Generator().manual_seed(seed)
    family = family_of(model)
    side = model.config.vision_config.image_size
    inputs: dict = {}
    if images and model.config.model_type == "llava_onevision":
        sizes = [(40, 60), (64, 64), (30, 90), (32, 32)]
        chosen = [sizes[(size + image) % len(sizes)] for image in range(images)]
        inputs["image_sizes"] = torch.tensor(chosen)
        layouts = family.layouts(inputs)
        most = max(layout.tiles for layout in layouts)
        inputs["pixel_values"] = torch.randn(images, most, 3, side, side, generator=generator)
    elif images:
        inputs["pixel_values"] = torch.randn(images, 3, side, side, generator=generator)
        layouts = family.layouts(inputs)
    ids = torch.randint(9, 60, (text,), generator=generator).tolist()
    for image in range(images):
        ids += [IMAGE_TOKEN] * layouts[image].visual_tokens
        ids += torch.randint(9, 60, (text,), generator=generator).tolist()
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def batch(samples: list[dict]) -> dict:
    """Samples side by side, padded on the left."""
    longest = max(s["input_ids"].shape[1] for s in samples)
    pad = torch.nn.functional.pad
    inputs = {
        key: torch.cat([pad(s[key], (longest - s[key].shape[1], 0)) for s in samples])
        for key in ("input_ids", "attention_mask")
    }
    for key in ("pixel_values", "image_sizes"):
        tensors = [s[key] for s in samples if key in s]
        if tensors and tensors[0].ndim == 5:
            most = max(t.shape[1] for t in tensors)
            tensors = [pad(t, (0, 0, 0, 0, 0, 0, 0, most - t.shape[1])) for t in tensors]
        if tensors:
            inputs[key] = torch.cat(tensors)
    return inputs


def fake_flash(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """What flash attention does, slowly: 2-D masks only; without one, positions that jump are packed sequences."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(query.shape[0], queries, keys, dtype=torch.bool)
    if module.is_causal:
        seen &= torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if mask is not None:
        assert mask.shape == (query.shape[0], keys)
        seen &= mask.bool()[:, None]
    elif _is_packed_sequence(kwargs.get("position_ids"), query.shape[0]):
        pack = (kwargs["position_ids"].diff(prepend=kwargs["position_ids"][:, :1] - 1) != 1).cumsum(1)
        seen &= pack[:, :, None] == pack[:, None]
    seen = seen.unsqueeze(1) | ~seen.any(-1)[:, None, :, None]
    return sdpa_attention_forward(module, query, key, value, seen, scaling=kwargs.get("scaling"), is_causal=False)


AttentionInterface.register("fake_flash", fake_flash)
AttentionMaskInterface.register("fake_flash", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
