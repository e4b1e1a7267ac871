"""Aya Vision: square tiles with separator text between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multimodal.families.family import Family
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class AyaVision(Family):
    """``AyaVisionForConditionalGeneration``; a tile is an image of its own, since text stands between tiles."""

    model_type = "aya_vision"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        tiles, _, height, width = inputs["pixel_values"].shape
        patches = (height // self.patch_size) * (width // self.patch_size)
        return [square_layout(patches, self.config.downsample_factor)] * tiles

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        projector = self.base.multi_modal_projector
        return pack_shuffled(views, layouts, lambda maps: projector.pixel_shuffle(maps).flatten(1, 2))


class Cohere2Vision(AyaVision):
    """``Cohere2VisionForConditionalGeneration``: Command A Vision."""

    model_type = "cohere2_vision"
