"""LLaVA-OneVision, images and videos."""

from functools import partial

import torch
from torch import Generator, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from multimodal.testing.tiny_models import anyres
from multimodal.testing.tiny_models.anyres import PINPOINTS, SIDE, TILE
from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    TEXT,
    VIDEO_TOKEN,
    VISION,
    Media,
    TinyFamily,
    Token,
    pooled,
)

FRAMES = 3


def build() -> PreTrainedModel:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**VISION),
            text_config=Qwen2Config(**TEXT),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=PINPOINTS,
        )
    )


def video_tokens(frames: int) -> list[Token]:
    return [token for frame in range(frames) for token in pooled(frame, SIDE, SIDE, 2)] + [None]


def video(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels = torch.randn(1, FRAMES, 3, TILE, TILE, generator=generator)
    return Media({"pixel_values_videos": pixels}, [VIDEO_TOKEN] * len(video_tokens(FRAMES)))


def vision_attention(model: PreTrainedModel) -> nn.Module:
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return stack[3].self_attn


FAMILIES = {
    "llava_onevision": TinyFamily(
        build, anyres.image, partial(anyres.tokens, video_tokens), anyres.pictures, vision_attention, video
    )
}
