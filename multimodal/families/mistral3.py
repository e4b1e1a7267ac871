"""Mistral 3: images in their own sizes, ``n × n`` patches joined into a visual token, a text token after each row."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.mistral3.modeling_mistral3 import Mistral3PatchMerger

from multimodal.families.geometry import random_pixels, stand_in
from multimodal.families.llava import Llava
from multimodal.layout import Layout


class Mistral3(Llava):
    """``Mistral3ForConditionalGeneration``; patches that fill no visual token, at the right or bottom, are left out."""

    model_type = "mistral3"

    @property
    def joined(self) -> int:
        """Patches along a visual token."""
        return self.config.spatial_merge_size

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        unit = self.patch_size * self.joined
        height, width = (side // unit * unit for side in size or (448, 448))
        sizes = torch.tensor([[height, width]], device="cpu")
        return {"pixel_values": random_pixels(1, 3, height, width), "image_sizes": sizes}

    def layout(self, rows: int, columns: int) -> Layout:
        grid = (rows // self.joined, columns // self.joined)
        seen = (rows * self.patch_size, columns * self.patch_size)
        return Layout(grids=(grid,), views=(rows * columns,), image_size=seen)

    def tower_grid(self, layout: Layout) -> tuple[int, int]:
        assert layout.image_size is not None
        height, width = layout.image_size
        return height // self.patch_size, width // self.patch_size

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        def average(units: Tensor) -> Tensor:
            """What stands in for the merger's linear layer: it is given ``[tokens, channels · patches of one]``."""
            return units.unflatten(-1, (-1, self.joined**2)).mean(-1)

        own = stand_in(patch_size=1, spatial_merge_size=self.joined, merging_layer=average)  # sizes are in patches
        sizes: Any = [self.tower_grid(layout) for layout in layouts]
        tokens = Mistral3PatchMerger.forward(own, torch.cat(list(views)), sizes)
        return list(tokens.split([layout.visual_tokens for layout in layouts]))
