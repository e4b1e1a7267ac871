"""Ovis2: square tiles with indicator tokens between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from multimodal.families.geometry import Geometry
from multimodal.families.pooling import pack_pooled
from multimodal.layout import Layout


class Ovis2(Geometry):
    """``Ovis2ForConditionalGeneration``; a tile is an image of its own, since indicators stand between tiles."""

    model_type = "ovis2"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        tiles, _, height, _ = inputs["pixel_values"].shape
        side = height // self.patch_size
        joined = -(-side // self.config.vision_config.hidden_stride)
        return [Layout(grids=((joined, joined),), views=(side**2,))] * tiles

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        # the tower's forward joins patches, with no function of its own for it
        return pack_pooled(views, self.config.vision_config.hidden_stride, ceil=True)
