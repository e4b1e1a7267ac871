"""LLaVA-NeXT (1.6): a base view and high-resolution tiles, unpadded, with a newline token a row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from multimodal.families.family import Family
from multimodal.layout import Layout


class LlavaNext(Family):
    """``LlavaNextForConditionalGeneration``."""

    model_type = "llava_next"

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        size = size or (2 * side, 2 * side)
        pixels = torch.randn(1, self.tiles(size), 3, side, side, dtype=self.model.dtype, device=self.model.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([size], device=self.model.device)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        return [self.layout(size, self.tiles(size)) for size in sizes]

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        packed, _ = self.base.pack_image_features(
            list(torch.stack(list(views)).split([len(layout.views) for layout in layouts])),
            torch.tensor([layout.image_size for layout in layouts]),
            image_newline=torch.full((views[0].shape[-1],), float("nan"), device=views[0].device),
            **self.packing,
        )
        return packed

    @property
    def packing(self) -> dict[str, Any]:
        """What else the packing code must be told."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}

    @property
    def side(self) -> int:
        """Patches along a view."""
        return self.config.vision_config.image_size // self.patch_size

    def tiles(self, size: tuple[int, int]) -> int:
        """Views of an image of a size (height, width), its base view included."""
        return image_size_to_num_patches(
            torch.tensor(size), self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )

    def layout(self, size: tuple[int, int], tiles: int) -> Layout:
        """The layout of an image of a size (height, width) that the tower sees in some tiles."""
        patches = self.side**2
        unknown = Layout(grids=(), views=(patches,) * tiles, image_size=size)
        # the packing code itself says where the newlines are: they come back as NaN
        is_newline = self.pack([torch.zeros(patches, 1)] * tiles, [unknown])[0][:, 0].isnan()
        newlines = tuple(is_newline.nonzero()[:, 0].tolist())
        grids: tuple[tuple[int, int], ...] = ((self.side, self.side),)
        if tiles > 1:
            grids += ((len(newlines), newlines[0] - patches),)
        return replace(unknown, grids=grids, newlines=newlines)
