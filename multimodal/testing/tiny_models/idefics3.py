"""Idefics3 and SmolVLM: an image is several tiles with separators between them, the whole image last."""

import inspect
from functools import partial

import torch
from torch import Generator, Tensor, nn
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from multimodal.testing.tiny_models.family import IMAGE_TOKEN, SEPARATOR, TEXT, VISION, Media, TinyFamily, Token, pooled

SIDE, MERGE = 8, 2
TILES = [1, 3, 1, 4]


def build(config: type, model: type) -> PreTrainedModel:
    return model(
        config(
            vision_config=VISION,
            text_config=LlamaConfig(**TEXT).to_dict(),
            image_token_id=IMAGE_TOKEN,
            scale_factor=MERGE,
            pad_token_id=0,
        )
    )


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    tiles = TILES[number % len(TILES)]
    pixels = torch.randn(1, tiles, 3, VISION["image_size"], VISION["image_size"], generator=generator)
    own = [IMAGE_TOKEN] * (SIDE // MERGE) ** 2
    return Media({"pixel_values": pixels}, [SEPARATOR, *(token for _ in range(tiles) for token in (*own, SEPARATOR))])


def tiles_of(inputs: dict) -> list[Tensor]:
    """All tiles but those that only fill a row up."""
    return [tile for row in inputs["pixel_values"] for tile in row if bool((tile != 0).any())]


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [pooled(0, SIDE, SIDE, MERGE) for _ in tiles_of(inputs)]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    return [[tile] for tile in tiles_of(inputs)]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_model.encoder.layers[3].self_attn


def family(config: type, model: type) -> TinyFamily:
    encodes_first = "mm_encoder_outputs" in inspect.signature(model.forward).parameters  # not in transformers 5.0
    return TinyFamily(
        partial(build, config, model),
        image,
        tokens,
        pictures,
        vision_attention,
        sees_uncached=encodes_first,
        gaps={"video": "The frames of a video are read as images."},
    )


FAMILIES = {
    "idefics3": family(Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": family(SmolVLMConfig, SmolVLMForConditionalGeneration),
}
