"""VideoLLaMA 3: images and videos of any size; patches of a video, and on request of an image, joined by averaging."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import VideoLlama3VisionModel

from multimodal.families.geometry import Geometry, integers, random_pixels, stand_in
from multimodal.families.merged_grids import layouts_of_grids, tower_grids
from multimodal.layout import Layout


class VideoLlama3(Geometry):
    """``VideoLlama3ForConditionalGeneration``; videos without the processor's own token compression."""

    model_type = "video_llama_3"
    tower_path = "vision_model"

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        rows, columns = (side // self.patch_size for side in size or (448, 448))
        return {
            "pixel_values": random_pixels(rows * columns, 3 * self.patch_size**2),
            "image_grid_thw": torch.tensor([[1, rows, columns]], device="cpu"),
            "image_merge_sizes": torch.tensor([1], device="cpu"),
        }

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return pixels.unflatten(-1, (3, -1))  # flattened patches: channels, rows, columns

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return layouts_of_grids(inputs["image_grid_thw"], integers(inputs["image_merge_sizes"]), video=False)

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return layouts_of_grids(inputs["video_grid_thw"], integers(inputs["video_merge_sizes"]), video=True)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        joined = [isqrt(layout.views[0] * len(layout.grids) // layout.patch_tokens) for layout in layouts]
        grids, sides = (torch.tensor(sizes, device="cpu") for sizes in (tower_grids(layouts, joined), joined))
        tokens = VideoLlama3VisionModel.pixel_unshuffle(stand_in(), torch.cat(list(views)), grids, sides)
        return list(tokens.split([layout.visual_tokens for layout in layouts]))
