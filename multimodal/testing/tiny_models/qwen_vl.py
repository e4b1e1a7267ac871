"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL, images of several sizes and videos."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from multimodal.testing.tiny_models.family import (
    IMAGE_TOKEN,
    TEXT,
    VIDEO_TOKEN,
    VISION_END,
    VISION_START,
    Media,
    TinyFamily,
    Token,
    pooled,
)

PATCH, MERGE, FRAMES = 4, 2, 2  # pixels, patches along a merge unit, frames of a temporal patch
GRIDS = [(6, 8), (4, 4), (8, 6), (10, 4)]  # patches
VIDEO = (3, 4, 6)  # pairs of frames, patches
WINDOW = 16  # pixels: two merge units
# older versions find out by themselves what each token stands for
TAKES_KINDS = "mm_token_type_ids" in inspect.signature(Qwen2VLForConditionalGeneration.forward).parameters
SHARED: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
    "tie_word_embeddings": False,
}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
TOWER: dict[str, Any] = {
    "depth": 4,
    "num_heads": 3,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "initializer_range": 0.2,
}
WORDS_MODEL = TEXT | {"initializer_range": 0.1, "rope_parameters": ROTARY}


def qwen2() -> PreTrainedModel:
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config=TOWER | {"embed_dim": 24, "hidden_size": 32, "mlp_ratio": 2},
            text_config=WORDS_MODEL,
            **SHARED,
        )
    )


def qwen2_5() -> PreTrainedModel:
    tower = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32, "window_size": WINDOW}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config=TOWER | tower | {"fullatt_block_indexes": [1, 3]},
            text_config=WORDS_MODEL,
            **SHARED,
        )
    )


def qwen3() -> PreTrainedModel:
    tower = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32, "num_position_embeddings": 64}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config=TOWER | tower | {"deepstack_visual_indexes": [0, 2]},
            text_config=WORDS_MODEL | {"head_dim": 8, "rope_parameters": ROTARY | {"mrope_interleaved": True}},
            **SHARED,
        )
    )


def qwen3_moe() -> PreTrainedModel:
    tower = {"hidden_size": 24, "out_hidden_size": 32, "intermediate_size": 32, "num_position_embeddings": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    rotary = {"head_dim": 8, "rope_parameters": ROTARY | {"mrope_interleaved": True}}
    return Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(
            vision_config=TOWER | tower | {"deepstack_visual_indexes": [0, 2]},
            text_config=WORDS_MODEL | experts | rotary,
            **SHARED,
        )
    )


def flattened(frames: Tensor, together: int = FRAMES, merge: int = MERGE) -> Tensor:
    """Patches, merge unit by merge unit, as the processor flattens them: ``[T, 3, H, W]`` → ``[patches, values]``."""
    times, _, height, width = frames.shape
    rows, columns = height // PATCH, width // PATCH
    flat = []
    for time in range(times // together):
        for unit_row in range(rows // merge):
            for unit_column in range(columns // merge):
                for row in range(unit_row * merge, unit_row * merge + merge):
                    for column in range(unit_column * merge, unit_column * merge + merge):
                        part = frames[
                            time * together : (time + 1) * together,
                            :,
                            row * PATCH : (row + 1) * PATCH,
                            column * PATCH : (column + 1) * PATCH,
                        ]
                        flat.append(part.transpose(0, 1).reshape(-1))
    return torch.stack(flat)


def raster_order(rows: int, columns: int, window: int | None, merge: int = MERGE) -> list[int]:
    """Raster index of the patch at each place of the tower's sequence: by merge unit, or by window of merge units."""
    units = [(row, column) for row in range(rows // merge) for column in range(columns // merge)]
    if window is not None:
        units.sort(key=lambda unit: (unit[0] // window, unit[1] // window, unit))
    offsets = [(y, x) for y in range(merge) for x in range(merge)]
    return [(row * merge + y) * columns + column * merge + x for row, column in units for y, x in offsets]


def restored(patches: Tensor, rows: int, columns: int, together: int = FRAMES, merge: int = MERGE) -> list[Tensor]:
    """The frames ``[3, H, W]`` of one view from its flattened patches."""
    frames = torch.zeros(together, 3, rows * PATCH, columns * PATCH)
    for patch, place in zip(patches, raster_order(rows, columns, None, merge), strict=True):
        y, x = place // columns * PATCH, place % columns * PATCH
        frames[:, :, y : y + PATCH, x : x + PATCH] = patch.view(3, together, PATCH, PATCH).transpose(0, 1)
    return list(frames)


def image(model: PreTrainedModel, number: int, generator: Generator) -> Media:
    rows, columns = GRIDS[number % len(GRIDS)]
    picture = torch.randn(1, 3, rows * PATCH, columns * PATCH, generator=generator).expand(FRAMES, -1, -1, -1)
    pixels = {"pixel_values": flattened(picture), "image_grid_thw": torch.tensor([[1, rows, columns]])}
    return Media(pixels, [VISION_START, *[IMAGE_TOKEN] * (rows * columns // MERGE**2), VISION_END])


def video(time_stamps: bool, model: PreTrainedModel, number: int, generator: Generator) -> Media:
    times, rows, columns = VIDEO
    frames = torch.randn(times * FRAMES, 3, rows * PATCH, columns * PATCH, generator=generator)
    pixels = {"pixel_values_videos": flattened(frames), "video_grid_thw": torch.tensor([VIDEO])}
    own = [VIDEO_TOKEN] * (rows * columns // MERGE**2)
    if not time_stamps:
        return Media(pixels, [VISION_START, *own * times, VISION_END])
    return Media(pixels, [t for time in range(times) for t in (20 + time, VISION_START, *own, VISION_END)])


def grids(inputs: dict) -> list[list[int]]:
    return [
        *inputs.get("image_grid_thw", torch.zeros(0, 3)).long().tolist(),
        *inputs.get("video_grid_thw", torch.zeros(0, 3)).long().tolist(),
    ]


def tokens(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [
        [token for time in range(times) for token in pooled(time, rows, columns, MERGE)]
        for times, rows, columns in grids(inputs)
    ]


def pictures(model: PreTrainedModel, inputs: dict) -> list[Sequence[Tensor]]:
    parts = [inputs[key] for key in ("pixel_values", "pixel_values_videos") if key in inputs]
    patches, shown = torch.cat(parts), []
    for times, rows, columns in grids(inputs):
        for _ in range(times):
            own, patches = patches[: rows * columns], patches[rows * columns :]
            shown.append(restored(own, rows, columns))
    return shown


def painted(inputs: dict, pictures: list[Sequence[Tensor]]) -> dict:
    patches, changed = torch.cat([flattened(torch.stack(list(frames))) for frames in pictures]), {}
    for key in ("pixel_values", "pixel_values_videos"):
        if key in inputs:
            changed[key], patches = patches[: len(inputs[key])], patches[len(inputs[key]) :]
    return inputs | changed


def tower_order(window: int | None, model: PreTrainedModel, inputs: dict) -> list[list[int]]:
    return [raster_order(rows, columns, window) for times, rows, columns in grids(inputs) for _ in range(times)]


def token_inputs(ids: Tensor) -> dict[str, Tensor]:
    kinds = (ids == IMAGE_TOKEN).long() + 2 * (ids == VIDEO_TOKEN).long()
    return {"mm_token_type_ids": kinds} if TAKES_KINDS else {}


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.visual.blocks[3].attn


def family(build: Any, window: int | None = None, time_stamps: bool = False) -> TinyFamily:
    return TinyFamily(
        build,
        image,
        tokens,
        pictures,
        vision_attention,
        partial(video, time_stamps),
        token_inputs,
        tower_order=partial(tower_order, window),
        painted=painted,
        plain_decoder=False,
        rotary_axes=3,
    )


FAMILIES = {
    "qwen2_vl": family(qwen2),
    "qwen2_5_vl": family(qwen2_5, window=WINDOW // PATCH // MERGE),
    "qwen3_vl": family(qwen3, time_stamps=True),
    "qwen3_vl_moe": family(qwen3_moe, time_stamps=True),
}
