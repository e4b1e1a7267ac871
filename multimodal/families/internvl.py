"""InternVL: square tiles, the whole image last, 2×2 patches joined into a visual token; a video's frames are images."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from transformers import InternVLModel

from multimodal.families.geometry import Geometry, random_pixels, stand_in
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class InternVL(Geometry):
    """``InternVLForConditionalGeneration``."""

    model_type = "internvl"
    joins_touching_views = True

    @property
    def patch_size(self) -> int:
        return self.config.vision_config.patch_size[0]

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        height, width = self.config.vision_config.image_size
        tiles = 1 if size is None else 1 + (size[0] // height) * (size[1] // width)  # the whole image is one more
        return {"pixel_values": random_pixels(tiles, 3, height, width)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        views, _, height, width = inputs["pixel_values"].shape
        patches = (height // self.patch_size) * (width // self.patch_size)
        return [square_layout(patches, int(1 / self.config.downsample_ratio))] * views

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        return pack_shuffled(views, layouts, self._shuffle)

    def _shuffle(self, maps: Tensor) -> Tensor:
        side, shuffle = isqrt(maps.shape[1]), InternVLModel.pixel_shuffle
        grids = maps.unflatten(1, (side, side))
        return shuffle(stand_in(), grids, scale_factor=self.config.downsample_ratio).flatten(1, 2)
