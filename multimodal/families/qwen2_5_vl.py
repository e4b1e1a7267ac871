"""Qwen2.5-VL: as Qwen2-VL, but most tower layers attend within windows, by which the tower also orders patches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from multimodal.families.merged_grids import tower_grids
from multimodal.families.qwen2_vl import Qwen2VL
from multimodal.families.versions import window_order
from multimodal.layout import Layout


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``."""

    model_type = "qwen2_5_vl"

    @property
    def whole_view_layers(self) -> Sequence[int]:
        return sorted(set(self.config.vision_config.fullatt_block_indexes) & set(range(self.vision_layers)))

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        order, _ = self._window_order(layouts)
        units = self.merge_units(super().patch_pixels(pixels, layouts))
        return units[order.to(pixels.device, non_blocking=True)].flatten(0, 1)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        _, inverse = self._window_order(layouts)
        windowed = torch.cat(super().pack(views, layouts))
        tokens = windowed[inverse.to(windowed.device, non_blocking=True)]
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def _window_order(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
        """Which merge unit the tower reads first, second, … ``[units]``, and the inverse."""
        grids = tuple(tower_grids(layouts, self.merge_size))
        return window_order(grids, self.merge_size, self.config.vision_config.window_size, self.patch_size)
