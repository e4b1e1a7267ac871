"""InternVL: images of several tiles, whose tokens touch, the whole image last."""

from itertools import groupby

import torch
from torch import Generator, Tensor, nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedModel,
    Qwen2Config,
)

from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    TEXT,
    VISION,
    VISION_END,
    VISION_START,
    Media,
    TinyFamily,
    Token,
    pooled,
)

SIDE, MERGE = 8, 2
PER_TILE = (SIDE // MERGE) ** 2
TILES = [1, 3, 1, 5]


def build() -> PreTrainedModel:
    tower = InternVLVisionConfig(**VISION, layer_scale_init_value=1.0)
    config = InternVLConfig(vision_config=tower, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE_TOKEN)
    config.tie_word_embeddings = False
    return InternVLForConditionalGeneration(config)


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    tiles = TILES[number % len(TILES)]
    pixels = torch.randn(tiles, 3, VISION["image_size"], VISION["image_size"], generator=generator)
    return Media({"pixel_values": pixels}, [VISION_START, *[IMAGE_TOKEN] * (tiles * PER_TILE), VISION_END])


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    """An image's placeholders are one run of them."""
    runs = [
        len(list(run))
        for row in inputs["input_ids"].tolist()
        for is_image, run in groupby(row, key=lambda token: token == IMAGE_TOKEN)
        if is_image
    ]
    return [[token for tile in range(run // PER_TILE) for token in pooled(tile, SIDE, SIDE, MERGE)] for run in runs]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    return [[picture] for picture in inputs["pixel_values"]]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_tower.encoder.layer[3].attention


FAMILIES = {
    "internvl": TinyFamily(
        build, image, tokens, pictures, vision_attention, gaps={"video": "The frames of a video are read as images."}
    )
}
