"""Qwen2-VL: images and videos of any size, 2×2 patches merged into a visual token, three rotary axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.families.geometry import Geometry, random_pixels
from multimodal.families.merged_grids import layouts_of_grids, tower_grids
from multimodal.layout import Layout
from multimodal.versions import tells_token_types


class Qwen2VL(Geometry):
    """``Qwen2VLForConditionalGeneration``; a video's grids are its pairs of frames."""

    model_type = "qwen2_vl"
    tower_path = "visual"
    rotary_axes = 3

    @property
    def vision_layers(self) -> int:
        return self.config.vision_config.depth

    @property
    def merge_size(self) -> int:
        """Patches along a visual token."""
        return self.config.vision_config.spatial_merge_size

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        unit = self.patch_size * self.merge_size
        height, width = (side // unit * self.merge_size for side in size or (448, 448))
        values = 3 * self.config.vision_config.temporal_patch_size * self.patch_size**2
        grid = torch.tensor([[1, height, width]], device="cpu")
        return {"pixel_values": random_pixels(height * width, values), "image_grid_thw": grid}

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        if not tells_token_types(self.config):
            return {}
        kinds = input_ids.eq(self.config.image_token_id).long() + 2 * input_ids.eq(self.config.video_token_id).long()
        return {"mm_token_type_ids": kinds}

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return pixels.unflatten(-1, (3, -1))  # flattened patches: channels, frames, rows, columns

    def tower_grids(self, layouts: Sequence[Layout]) -> tuple[tuple[int, int, int], ...]:
        return tuple(tower_grids(layouts, self.merge_size))

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return layouts_of_grids(inputs["image_grid_thw"], self.merge_size, video=False)

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        grids = inputs["video_grid_thw"] if "video_grid_thw" in inputs else inputs["image_grid_thw"]
        return layouts_of_grids(grids, self.merge_size, video=True)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        tokens = self.merge_units(torch.cat(list(views))).mean(1)
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def merge_units(self, patches: Tensor) -> Tensor:
        """Patches, in the order in which the merger joins them ``[patches, …]`` → ``[units, patches of one, …]``."""
        return patches.unflatten(0, (-1, self.merge_size**2))
