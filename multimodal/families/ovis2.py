"""Ovis2: square tiles with indicator tokens between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from torch.nn.functional import avg_pool2d

from multimodal.families.family import Family
from multimodal.layout import Layout


class Ovis2(Family):
    """``Ovis2ForConditionalGeneration``; a tile is an image of its own, since indicators stand between tiles."""

    model_type = "ovis2"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        tiles, _, height, _ = inputs["pixel_values"].shape
        side = height // self.patch_size
        joined = -(-side // self.config.vision_config.hidden_stride)
        return [Layout(grids=((joined, joined),), views=(side**2,))] * tiles

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        # the tower's forward joins patches, with no function of its own for it
        stride, side = self.config.vision_config.hidden_stride, isqrt(len(views[0]))
        return [avg_pool2d(view.T.unflatten(1, (side, side)), stride, ceil_mode=True).flatten(1).T for view in views]
