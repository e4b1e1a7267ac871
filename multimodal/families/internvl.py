"""InternVL: square tiles, the whole image last, 2×2 patches joined into a visual token; a video's frames are images."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from multimodal.families.family import Family
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class InternVL(Family):
    """``InternVLForConditionalGeneration``."""

    model_type = "internvl"
    joins_touching_views = True

    @property
    def patch_size(self) -> int:
        return self.config.vision_config.patch_size[0]

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        height, width = self.config.vision_config.image_size
        tiles = 1 if size is None else 1 + (size[0] // height) * (size[1] // width)  # the whole image is one more
        pixels = torch.randn(tiles, 3, height, width, dtype=self.model.dtype, device=self.model.device)
        return {"pixel_values": pixels}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        views, _, height, width = inputs["pixel_values"].shape
        patches = (height // self.patch_size) * (width // self.patch_size)
        return [square_layout(patches, int(1 / self.config.downsample_ratio))] * views

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        return pack_shuffled(views, layouts, self._shuffle)

    def _shuffle(self, maps: Tensor) -> Tensor:
        side = isqrt(maps.shape[1])
        grids = maps.unflatten(1, (side, side))
        return self.base.pixel_shuffle(grids, scale_factor=self.config.downsample_ratio).flatten(1, 2)
