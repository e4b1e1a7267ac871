"""VideoLLaMA 3: images and videos of any size; patches of a video, and on request of an image, joined by averaging."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multimodal.families.family import Family
from multimodal.families.merged_grids import layouts_of_grids
from multimodal.layout import Layout


class VideoLlama3(Family):
    """``VideoLlama3ForConditionalGeneration``; videos without the processor's own token compression."""

    model_type = "video_llama_3"

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.base.vision_model

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        rows, columns = (side // self.patch_size for side in size or (448, 448))
        pixels = torch.randn(rows * columns, 3 * self.patch_size**2, dtype=self.model.dtype, device=self.model.device)
        grid, joined = torch.tensor([[1, rows, columns]]), torch.tensor([1])
        return {
            "pixel_values": pixels,
            "image_grid_thw": grid.to(pixels.device),
            "image_merge_sizes": joined.to(pixels.device),
        }

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return pixels.unflatten(-1, (3, -1))  # flattened patches: channels, rows, columns

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return layouts_of_grids(inputs["image_grid_thw"], inputs["image_merge_sizes"].tolist(), video=False)

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        return layouts_of_grids(inputs["video_grid_thw"], inputs["video_merge_sizes"].tolist(), video=True)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        joined = [isqrt(layout.views[0] * len(layout.grids) // layout.patch_tokens) for layout in layouts]
        grids = [
            (len(layout.grids), side * layout.grids[0][0], side * layout.grids[0][1])
            for layout, side in zip(layouts, joined, strict=True)
        ]
        tokens = self.base.vision_model.pixel_unshuffle(
            torch.cat(list(views)), torch.tensor(grids), torch.tensor(joined)
        )
        return list(tokens.split([layout.visual_tokens for layout in layouts]))
