"""VideoLLaMA 3: an image's patches are visual tokens, a video's are joined 2 × 2."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, VideoLlama3Config, VideoLlama3ForConditionalGeneration

from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    TEXT,
    VIDEO_TOKEN,
    VISION,
    VISION_END,
    VISION_START,
    Media,
    TinyFamily,
    Token,
    pooled,
)
from multimodal.testing.tiny_models.qwen_vl import PATCH, flattened, raster_order, restored

GRIDS = [(3, 5), (4, 4), (5, 3), (2, 6)]  # patches
VIDEO = (3, 4, 6)  # frames, patches
IMAGE_MERGE, VIDEO_MERGE = 1, 2
KINDS = (("pixel_values", "image", IMAGE_MERGE), ("pixel_values_videos", "video", VIDEO_MERGE))


def build() -> PreTrainedModel:
    return VideoLlama3ForConditionalGeneration(
        VideoLlama3Config(
            vision_config={key: value for key, value in VISION.items() if key != "image_size"},
            text_config=Qwen2Config(**TEXT).to_dict(),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
        )
    )


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    rows, columns = GRIDS[number % len(GRIDS)]
    pixels = {
        "pixel_values": torch.randn(rows * columns, 3 * PATCH**2, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
        "image_merge_sizes": torch.tensor([IMAGE_MERGE]),
    }
    return Media(pixels, [VISION_START, *[IMAGE_TOKEN] * (rows * columns), VISION_END])


def video(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    frames, rows, columns = VIDEO
    pixels = {
        "pixel_values_videos": torch.randn(frames * rows * columns, 3 * PATCH**2, generator=generator),
        "video_grid_thw": torch.tensor([VIDEO]),
        "video_merge_sizes": torch.tensor([VIDEO_MERGE]),
    }
    own = [VIDEO_TOKEN] * (rows * columns // VIDEO_MERGE**2)
    return Media(pixels, [token for frame in range(frames) for token in (20 + frame, VISION_START, *own, VISION_END)])


def grids(inputs: dict) -> list[tuple[int, int, int, int]]:
    """Frames, rows, columns and patches along a token of each image, then video."""
    return [
        (*grid, merge)
        for _, kind, merge in KINDS
        if f"{kind}_grid_thw" in inputs
        for grid in inputs[f"{kind}_grid_thw"].tolist()
    ]


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [
        [token for frame in range(frames) for token in pooled(frame, rows, columns, merge)]
        for frames, rows, columns, merge in grids(inputs)
    ]


def pictures(model: PreTrainedModel, inputs: dict) -> list[Sequence[Tensor]]:
    patches, shown = torch.cat([inputs[key] for key, _, _ in KINDS if key in inputs]), []
    for frames, rows, columns, merge in grids(inputs):
        for _ in range(frames):
            own, patches = patches[: rows * columns], patches[rows * columns :]
            shown.append(restored(own, rows, columns, together=1, merge=merge))
    return shown


def painted(inputs: dict, pictures: list[Sequence[Tensor]]) -> dict:
    merges = [merge for frames, _, _, merge in grids(inputs) for _ in range(frames)]
    flat = [flattened(torch.stack(list(view)), 1, merge) for view, merge in zip(pictures, merges, strict=True)]
    patches, changed = torch.cat(flat), {}
    for key, _, _ in KINDS:
        if key in inputs:
            changed[key], patches = patches[: len(inputs[key])], patches[len(inputs[key]) :]
    return inputs | changed


def tower_order(model: PreTrainedModel, inputs: dict) -> list[list[int]]:
    return [
        raster_order(rows, columns, None, merge)
        for frames, rows, columns, merge in grids(inputs)
        for _ in range(frames)
    ]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_model.encoder.layers[3].self_attn


FAMILIES = {
    "video_llama_3": TinyFamily(
        build, image, tokens, pictures, vision_attention, video, tower_order=tower_order, painted=painted
    )
}
