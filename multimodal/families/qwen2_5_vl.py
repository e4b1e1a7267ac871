"""Qwen2.5-VL: as Qwen2-VL, but most tower layers attend within windows, by which the tower also orders patches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from multimodal.families.qwen2_vl import Qwen2VL
from multimodal.layout import Layout


class Qwen25VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``."""

    model_type = "qwen2_5_vl"

    @property
    def vision_layers(self) -> Sequence[nn.Module]:
        return [self.base.visual.blocks[number] for number in sorted(self.config.vision_config.fullatt_block_indexes)]

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        units = self.merge_units(super().patch_pixels(pixels, layouts))
        return units[self._window_order(layouts).to(pixels.device)].flatten(0, 1)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        windowed = torch.cat(super().pack(views, layouts))
        tokens = windowed[self._window_order(layouts).argsort().to(windowed.device)]
        return list(tokens.split([layout.visual_tokens for layout in layouts]))

    def _window_order(self, layouts: Sequence[Layout]) -> Tensor:
        """Which merge unit the tower reads first, second, … ``[units]``."""
        vision, tower = self.config.vision_config, self.base.visual
        side = vision.spatial_merge_size
        grids = [(len(layout.grids), *(side * length for length in layout.grids[0])) for layout in layouts]
        if hasattr(tower, "get_window_index"):  # where transformers 5.0 keeps it
            return tower.get_window_index(torch.tensor(grids))[0]
        from transformers.vision_utils import get_vision_window_index

        return get_vision_window_index(torch.tensor(grids), side, vision.window_size, vision.patch_size)[0]
