"""Gemma 3, PaliGemma and PaliGemma 2, with windows that are smaller than an image."""

from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

from multimodal.testing.tiny_models.family import IMAGE_TOKEN, TEXT, VISION, Media, TinyFamily, Token, pooled, square

SIDE = 8  # patches
POOLED = 2  # patches along a Gemma 3 token
WINDOW = 13
SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
}
HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8}


def gemma3() -> PreTrainedModel:
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=SiglipVisionConfig(**VISION),
            text_config=Gemma3TextConfig(**TEXT | SLIDING | HEADS),
            image_token_index=IMAGE_TOKEN,
            mm_tokens_per_image=(SIDE // POOLED) ** 2,
            initializer_range=0.2,
        )
    )


def paligemma(text: type, **fields: Any) -> PreTrainedModel:
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**VISION),
            text_config=text(**TEXT, **fields),
            image_token_index=IMAGE_TOKEN,
            projection_dim=TEXT["hidden_size"],
        )
    )


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels = torch.randn(1, 3, VISION["image_size"], VISION["image_size"], generator=generator)
    return Media({"pixel_values": pixels}, [IMAGE_TOKEN] * len(own_tokens(model)))


def own_tokens(model: PreTrainedModel) -> list[Token]:
    return pooled(0, SIDE, SIDE, POOLED) if model.config.model_type == "gemma3" else square(0, SIDE, SIDE)


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [own_tokens(model) for _ in inputs["pixel_values"]]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    return [[picture] for picture in inputs["pixel_values"]]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return stack[3].self_attn


def family(build: Any, **fields: Any) -> TinyFamily:
    return TinyFamily(build, image, tokens, pictures, vision_attention, plain_decoder=False, flash=False, **fields)


FAMILIES = {
    "gemma3": family(gemma3, windows=True, token_inputs=lambda ids: {"token_type_ids": (ids == IMAGE_TOKEN).long()}),
    "paligemma": family(
        partial(paligemma, GemmaConfig, head_dim=8),
        token_inputs=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        following_type=1,
        gaps={"chat": "The prompt is one prefix that attends both ways: there are no later turns."},
    ),
    "paligemma2": family(
        partial(paligemma, Gemma2Config, **SLIDING, **HEADS),
        token_inputs=lambda ids: {"token_type_ids": torch.zeros_like(ids)},
        following_type=1,
        gaps={"chat": "The prompt is one prefix that attends both ways: there are no later turns."},
        windows=True,
        sdpa=False,
    ),
}
