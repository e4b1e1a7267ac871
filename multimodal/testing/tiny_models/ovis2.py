"""Ovis2: an image is several tiles with indicator tokens between them."""

import torch
from torch import Generator, Tensor, nn
from transformers import Ovis2Config, Ovis2ForConditionalGeneration, PreTrainedModel, Qwen2Config

from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    SEPARATOR,
    TEXT,
    VISION,
    VISION_START,
    Media,
    TinyFamily,
    Token,
    pooled,
)

SIDE, MERGE = 8, 2
TILES = [1, 3, 1, 4]


def build() -> PreTrainedModel:
    return Ovis2ForConditionalGeneration(
        Ovis2Config(
            vision_config=VISION | {"hidden_stride": MERGE, "vocab_size": 40, "num_visual_indicator_tokens": 2},
            text_config=Qwen2Config(**TEXT).to_dict(),
            image_token_id=IMAGE_TOKEN,
            visual_indicator_token_ids=[VISION_START, SEPARATOR],
            vocab_size=TEXT["vocab_size"],
            hidden_size=TEXT["hidden_size"],
            tie_word_embeddings=False,
        )
    )


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    tiles = TILES[number % len(TILES)]
    pixels = torch.randn(tiles, 3, VISION["image_size"], VISION["image_size"], generator=generator)
    own = [IMAGE_TOKEN] * (SIDE // MERGE) ** 2
    return Media(
        {"pixel_values": pixels}, [VISION_START, *(token for _ in range(tiles) for token in (*own, SEPARATOR))]
    )


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [pooled(0, SIDE, SIDE, MERGE) for _ in inputs["pixel_values"]]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    return [[tile] for tile in inputs["pixel_values"]]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_tower.transformer.encoder.layers[3].attention


# not plain: indicator tokens have embeddings of their own in prompts with images
FAMILIES = {"ovis2": TinyFamily(build, image, tokens, pictures, vision_attention, plain_decoder=False)}
