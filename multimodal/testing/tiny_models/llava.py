"""LLaVA-1.5 with several towers, ViP-LLaVA and DeepSeek-VL."""

from functools import partial

import torch
from torch import Generator, Tensor, nn
from transformers import (
    CLIPVisionConfig,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    Dinov2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from multimodal.testing.tiny_models.family import IMAGE_TOKEN, TEXT, VISION, Media, TinyFamily, Token, square

SIDE = 8


def build(tower: type, text: type, strategy: str, states: int | list[int]) -> PreTrainedModel:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower(**VISION),
            text_config=text(**TEXT),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=states,
            vision_feature_select_strategy=strategy,
        )
    )


def build_vip() -> PreTrainedModel:
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE_TOKEN,
            vision_feature_layers=[-2, -3, 1],
        )
    )


def build_deepseek() -> PreTrainedModel:
    return DeepseekVLForConditionalGeneration(
        DeepseekVLConfig(
            vision_config=SiglipVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_id=IMAGE_TOKEN,
            tie_word_embeddings=False,
        )
    )


def own_tokens(model: PreTrainedModel) -> list[Token]:
    vision = model.config.vision_config
    full = getattr(model.config, "vision_feature_select_strategy", None) == "full"
    has_class = full and vision.model_type != "siglip_vision_model"
    return [None] * has_class + square(0, SIDE, SIDE)


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels = torch.randn(1, 3, VISION["image_size"], VISION["image_size"], generator=generator)
    return Media({"pixel_values": pixels}, [IMAGE_TOKEN] * len(own_tokens(model)))


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [own_tokens(model) for _ in inputs["pixel_values"]]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    return [[picture] for picture in inputs["pixel_values"]]


def layers(tower: nn.Module) -> nn.ModuleList:
    return next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == VISION["num_hidden_layers"])


def vision_attention(model: PreTrainedModel) -> nn.Module:
    """State −2 of the tower is what its last layer but one puts out."""
    layer = layers(model.model.vision_tower)[2]
    return next(m for m in layer.modules() if hasattr(m, "q_proj") or hasattr(m, "query"))


def family(tower: type, text: type, strategy: str, states: int | list[int] = -2) -> TinyFamily:
    return TinyFamily(partial(build, tower, text, strategy, states), image, tokens, pictures, vision_attention)


FAMILIES = {
    "llava_clip": family(CLIPVisionConfig, Qwen2Config, "default"),
    "llava_clip_full": family(CLIPVisionConfig, Qwen2Config, "full"),
    "llava_siglip": family(SiglipVisionConfig, LlamaConfig, "full"),
    "llava_dinov2": family(Dinov2Config, Qwen2Config, "default", [1, -2]),
    "vipllava": TinyFamily(build_vip, image, tokens, pictures, vision_attention),
    "deepseek_vl": TinyFamily(
        build_deepseek, image, tokens, pictures, lambda model: layers(model.model.vision_model)[3].self_attn
    ),
}
