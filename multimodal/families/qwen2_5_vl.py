"""Qwen2.5-VL: as Qwen2-VL, but most tower layers attend within windows, by which the tower also orders patches."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from multimodal.families.geometry import stand_in
from multimodal.families.merged_grids import tower_grids
from multimodal.families.qwen2_vl import Qwen2VL
from multimodal.layout import Layout
from multimodal.versions import window_order


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``."""

    model_type = "qwen2_5_vl"

    @property
    def whole_view_layers(self) -> Sequence[int]:
        return sorted(set(self.config.vision_config.fullatt_block_indexes) & set(range(self.vision_layers)))

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        order, _ = self._orders(layouts)
        units = self.merge_units(super().patch_pixels(pixels, layouts))
        return units[order.to(pixels.device, non_blocking=True)].flatten(0, 1)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        _, inverse = self._orders(layouts)
        windowed = torch.cat(super().pack(views, layouts))
        tokens = windowed[inverse.to(windowed.device, non_blocking=True)]
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def _orders(self, layouts: Sequence[Layout]) -> tuple[Tensor, Tensor]:
        grids = tuple(tower_grids(layouts, self.merge_size))
        return _window_orders(grids, self.merge_size, self.config.vision_config.window_size, self.patch_size)


@lru_cache(maxsize=64)
def _window_orders(
    grids: tuple[tuple[int, int, int], ...], merge_size: int, window_size: int, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Which merge unit the tower reads first, second, … ``[units]``, and the inverse, on the CPU.

    Args:
        grids: (frames, rows, columns) of each image or video, in patches.
        merge_size: patches along a merge unit.
        window_size: pixels along a window.
        patch_size: pixels along a patch.
    """
    vision = stand_in(spatial_merge_size=merge_size, window_size=window_size, patch_size=patch_size)
    with torch.inference_mode(False):  # they are kept, and an inference tensor could not be used for gradients later
        order = window_order(torch.tensor(grids, device="cpu"), vision)
        return order, order.argsort()
