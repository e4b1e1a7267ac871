"""Qwen2.5-VL: as Qwen2-VL, but most tower layers attend within windows, by which the tower also orders patches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.families.geometry import stand_in
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
        units = self.merge_units(super().patch_pixels(pixels, layouts))
        return units[constant(_window_order, pixels.device, *self._windows(layouts))].flatten(0, 1)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        windowed = torch.cat(super().pack(views, layouts))
        tokens = windowed[constant(_raster_order, windowed.device, *self._windows(layouts))]
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def _windows(self, layouts: Sequence[Layout]) -> tuple[tuple[tuple[int, int, int], ...], int, int, int]:
        """What the order of the merge units follows from."""
        return self.tower_grids(layouts), self.merge_size, self.config.vision_config.window_size, self.patch_size


def _window_order(
    grids: tuple[tuple[int, int, int], ...], merge_size: int, window_size: int, patch_size: int
) -> Tensor:
    """Which merge unit the tower reads first, second, … ``[units]``, on the CPU.

    Args:
        grids: (frames, rows, columns) of each image or video, in patches.
        merge_size: patches along a merge unit.
        window_size: pixels along a window.
        patch_size: pixels along a patch.
    """
    vision = stand_in(spatial_merge_size=merge_size, window_size=window_size, patch_size=patch_size)
    return window_order(torch.tensor(grids, device="cpu"), vision)


def _raster_order(*windows: Any) -> Tensor:
    """Where the tower reads the first, second, … merge unit: the inverse of :func:`_window_order`."""
    return _window_order(*windows).argsort()
