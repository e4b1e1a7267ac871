"""LLaVA-OneVision, images and videos."""

import torch
from torch import Generator, Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from tiny_models.anyres import PINPOINTS, SIZES, tile_tokens, tiles_of
from tiny_models.family import IMAGE_TOKEN, TEXT, VIDEO_TOKEN, VISION, Media, TinyFamily, Token, pooled, square

SIDE, TILE = 8, VISION["image_size"]


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


def image_tokens(size: tuple[int, int]) -> list[Token]:
    return square(0, SIDE, SIDE) + tile_tokens(size, SIDE, TILE)


def video_tokens(frames: int) -> list[Token]:
    return [token for frame in range(frames) for token in pooled(frame, SIDE, SIDE, 2)] + [None]


def views(size: tuple[int, int]) -> int:
    down, across = tiles_of(size, TILE)
    return 1 + down * across


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    size = SIZES[number % len(SIZES)]
    pixels = torch.randn(1, views(size), 3, TILE, TILE, generator=generator)
    return Media({"pixel_values": pixels, "image_sizes": torch.tensor([size])}, [IMAGE_TOKEN] * len(image_tokens(size)))


def video(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels = torch.randn(1, 3, 3, TILE, TILE, generator=generator)
    return Media({"pixel_values_videos": pixels}, [VIDEO_TOKEN] * len(video_tokens(3)))


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    images = [image_tokens(tuple(size)) for size in inputs["image_sizes"].tolist()] if "image_sizes" in inputs else []
    return images + [video_tokens(len(frames)) for frames in inputs.get("pixel_values_videos", ())]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    shown = []
    if "image_sizes" in inputs:
        for pixels, size in zip(inputs["pixel_values"], inputs["image_sizes"].tolist(), strict=True):
            shown += [[picture] for picture in pixels[: views(tuple(size))]]
    return shown + [[frame] for frames in inputs.get("pixel_values_videos", ()) for frame in frames]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return stack[3].self_attn


FAMILIES = {"llava_onevision": TinyFamily(build, image, tokens, pictures, vision_attention, video)}
