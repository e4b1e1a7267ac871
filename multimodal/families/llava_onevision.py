"""LLaVA-OneVision: a base view and high-resolution tiles, unpadded, interpolated, with a newline token a row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from multimodal.families.family import Family
from multimodal.layout import Layout


class LlavaOnevision(Family):
    """``LlavaOnevisionForConditionalGeneration``; a video's frames are pooled, with one newline token at its end."""

    model_type = "llava_onevision"

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        size = size or (2 * side, 2 * side)
        pixels = torch.randn(1, self._tiles(size), 3, side, side, dtype=self.model.dtype, device=self.model.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([size], device=self.model.device)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        sizes = [(int(height), int(width)) for height, width in inputs["image_sizes"]]
        counts = inputs.get("batch_num_images")
        alone = [True] * len(sizes) if counts is None else [int(n) == 1 for n in counts for _ in range(int(n))]
        return [self._layout(size, self._tiles(size) if cut else 1) for size, cut in zip(sizes, alone, strict=True)]

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        pooled = -(-self._side // 2)
        layout = Layout(
            grids=((pooled, pooled),) * frames,
            newlines=(frames * pooled**2,),
            views=(self._side**2,) * frames,
            video=True,
        )
        return [layout] * videos

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        newline = torch.full((views[0].shape[-1],), float("nan"), device=views[0].device)
        parts = torch.stack(list(views)).split([len(layout.views) for layout in layouts])
        if layouts[0].video:
            return [torch.cat([self.base.apply_pooling(part).flatten(0, 1), newline[None]]) for part in parts]
        packed, _ = self.base.pack_image_features(
            list(parts),
            torch.tensor([layout.image_size for layout in layouts]),
            image_newline=newline,
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return packed

    @property
    def _side(self) -> int:
        return self.config.vision_config.image_size // self.patch_size

    def _tiles(self, size: tuple[int, int]) -> int:
        return image_size_to_num_patches(
            torch.tensor(size), self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )

    def _layout(self, size: tuple[int, int], tiles: int) -> Layout:
        patches = self._side**2
        unknown = Layout(grids=(), views=(patches,) * tiles, image_size=size)
        # the packing code itself says where the newlines are: they come back as NaN
        is_newline = self.pack([torch.zeros(patches, 1)] * tiles, [unknown])[0][:, 0].isnan()
        newlines = tuple(is_newline.nonzero()[:, 0].tolist())
        grids: tuple[tuple[int, int], ...] = ((self._side, self._side),)
        if tiles > 1:
            grids += ((len(newlines), newlines[0] - patches),)
        return replace(unknown, grids=grids, newlines=newlines)
