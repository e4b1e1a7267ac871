"""LLaVA-NeXT and LLaVA-NeXT-Video: a tower with a class token."""

from functools import partial

import torch
from torch import Generator, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedModel,
)

from multimodal.testing.tiny_models import anyres
from multimodal.testing.tiny_models.anyres import PINPOINTS
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

SIDE, TILE, FRAMES = 8, VISION["image_size"], 2


def build(config: type, model: type) -> PreTrainedModel:
    return model(
        config(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT),
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-2,
            image_grid_pinpoints=PINPOINTS,
            **({"video_token_index": VIDEO_TOKEN} if config is LlavaNextVideoConfig else {}),
        )
    )


def video_tokens(frames: int) -> list[Token]:
    return [token for frame in range(frames) for token in pooled(frame, SIDE, SIDE, 2)]


def video(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels = torch.randn(1, FRAMES, 3, TILE, TILE, generator=generator)
    return Media({"pixel_values_videos": pixels}, [VIDEO_TOKEN] * len(video_tokens(FRAMES)))


def vision_attention(model: PreTrainedModel) -> nn.Module:
    """State −2 of the tower is what its last layer but one puts out."""
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return stack[2].self_attn


def family(config: type, model: type, **parts: object) -> TinyFamily:
    tokens = partial(anyres.tokens, video_tokens)
    return TinyFamily(partial(build, config, model), anyres.image, tokens, anyres.pictures, vision_attention, **parts)


FAMILIES = {
    "llava_next": family(LlavaNextConfig, LlavaNextForConditionalGeneration),
    "llava_next_video": family(LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, video=video),
}
