"""LLaVA-OneVision: a base view and high-resolution tiles, unpadded, interpolated, with a newline token a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from multimodal.errors import FlowpruneError
from multimodal.families.family import Family
from multimodal.layout import Layout


class LlavaOnevision(Family):
    """``LlavaOnevisionForConditionalGeneration``; images (videos are not pruned yet and refused)."""

    model_type = "llava_onevision"

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        size = size or (2 * side, 2 * side)
        pixels = torch.randn(1, self._tiles(size), 3, side, side, dtype=self.model.dtype, device=self.model.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([size], device=self.model.device)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        if inputs.get("pixel_values_videos") is not None:
            raise FlowpruneError("Videos are not pruned yet: pass images only, or generate outside of prune().")
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        counts = inputs.get("batch_num_images")
        alone = [True] * len(sizes) if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]
        return [self._layout(size, self._tiles(size) if cut else 1) for size, cut in zip(sizes, alone, strict=True)]

    def pack(self, patches: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        newline = torch.full((patches.shape[-1],), float("nan"), device=patches.device)
        packed, _ = self.base.pack_image_features(
            list(patches.split([layout.tiles for layout in layouts])),
            torch.tensor([layout.image_size for layout in layouts]),
            image_newline=newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return packed

    def _tiles(self, size: tuple[int, int]) -> int:
        return image_size_to_num_patches(
            torch.tensor(size), self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )

    def _layout(self, size: tuple[int, int], tiles: int) -> Layout:
        side = self.config.vision_config.image_size // self.patch_size
        unknown = Layout(grids=(), tiles=tiles, image_size=size)
        # the packing code itself says where the newlines are: they come back as NaN
        is_newline = self.pack(torch.zeros(tiles, side * side, 1), [unknown])[0][:, 0].isnan()
        newlines = tuple(is_newline.nonzero()[:, 0].tolist())
        grids: tuple[tuple[int, int], ...] = ((side, side),)
        if tiles > 1:
            columns = newlines[0] - side * side
            grids += ((len(newlines), columns),)
        return Layout(grids=grids, newlines=newlines, tiles=tiles, image_size=size)
