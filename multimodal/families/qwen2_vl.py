"""Qwen2-VL: images and videos of any size, 2×2 patches merged into a visual token, three rotary axes."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal.families.family import Family
from multimodal.families.merged_grids import layouts_of_grids
from multimodal.layout import Layout


class Qwen2VL(Family):
    """``Qwen2VLForConditionalGeneration``; a video's grids are its pairs of frames."""

    model_type = "qwen2_vl"
    rotary_axes = 3

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.base.visual

    @property
    def vision_layers(self) -> Sequence[nn.Module]:
        return list(self.base.visual.blocks)

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        vision, device = self.config.vision_config, self.model.device
        unit = self.patch_size * vision.spatial_merge_size
        height, width = (side // unit * vision.spatial_merge_size for side in size or (448, 448))
        values = 3 * vision.temporal_patch_size * self.patch_size**2
        return {
            "pixel_values": torch.randn(height * width, values, dtype=self.model.dtype, device=device),
            "image_grid_thw": torch.tensor([[1, height, width]], device=device),
        }

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        if "mm_token_type_ids" not in signature(self.model.forward).parameters:
            return {}  # older versions find out by themselves
        kinds = input_ids.eq(self.config.image_token_id).long() + 2 * input_ids.eq(self.config.video_token_id).long()
        return {"mm_token_type_ids": kinds}

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return pixels.unflatten(-1, (3, -1))  # flattened patches: channels, frames, rows, columns

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return self._of_grids(inputs["image_grid_thw"], video=False)

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        grids = inputs["video_grid_thw"] if "video_grid_thw" in inputs else inputs["image_grid_thw"]
        return self._of_grids(grids, video=True)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        merged = [self.merge_units(view).mean(1) for view in views]
        tokens = torch.cat(merged)
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def merge_units(self, patches: Tensor) -> Tensor:
        """Patches, in the order in which the merger joins them ``[patches, …]`` → ``[units, patches of one, …]``."""
        return patches.unflatten(0, (-1, self.config.vision_config.spatial_merge_size**2))

    def _of_grids(self, grid_thw: Tensor, video: bool) -> list[Layout]:
        return layouts_of_grids(grid_thw, [self.config.vision_config.spatial_merge_size] * len(grid_thw), video)
