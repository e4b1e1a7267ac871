"""GLM-4.1V and GLM-4.6V, images of several sizes, or videos whose frames have the placeholders of images."""

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    PreTrainedModel,
)

from multimodal.testing.tiny_models import qwen_vl
from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    SEPARATOR,
    TEXT,
    VIDEO_TOKEN,
    VISION,
    VISION_END,
    VISION_START,
    Media,
    TinyFamily,
)

VIDEO_START, VIDEO_END = 3, SEPARATOR
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.75}
SHARED: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "image_start_token_id": VISION_START,
    "image_end_token_id": VISION_END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
    "tie_word_embeddings": False,
}
TOWER = VISION | qwen_vl.TOWER | {"out_hidden_size": 32}
WORDS_MODEL = TEXT | {"initializer_range": 0.1, "rope_parameters": ROTARY}


def glm4() -> PreTrainedModel:
    return Glm4vForConditionalGeneration(Glm4vConfig(vision_config=TOWER, text_config=WORDS_MODEL, **SHARED))


def glm46() -> PreTrainedModel:
    parts = {
        "vision_config": TOWER | {"model_type": "glm4v_vision"},
        "text_config": WORDS_MODEL | {"model_type": "glm4v_text"},
    }
    return Glm46VForConditionalGeneration(Glm46VConfig(**parts, **SHARED))


def video(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    pixels, ids = qwen_vl.video(True, model, number, generator)
    return Media(pixels, [VIDEO_START, *(IMAGE_TOKEN if token == VIDEO_TOKEN else token for token in ids), VIDEO_END])


def token_inputs(ids: Tensor) -> dict[str, Tensor]:
    if not qwen_vl.TAKES_KINDS:
        return {}
    in_video = (ids == VIDEO_START).cumsum(1) > (ids == VIDEO_END).cumsum(1)
    return {"mm_token_type_ids": torch.where(ids == IMAGE_TOKEN, 1 + in_video.long(), 0)}


def family(build: Any) -> TinyFamily:
    own = {"video": video, "token_inputs": token_inputs, "mixes_media": False, "copies_in_order": False}
    return replace(qwen_vl.family(build), **own)


FAMILIES = {"glm4v": family(glm4), "glm46v": family(glm46)}
