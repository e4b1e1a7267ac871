"""LLaVA-NeXT (1.6): a base view and high-resolution tiles, unpadded, with a newline token a row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaNextModel, PretrainedConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from multimodal.families.geometry import Geometry, integers, random_pixels, stand_in
from multimodal.layout import Layout


class LlavaNext(Geometry):
    """``LlavaNextForConditionalGeneration``."""

    model_type = "llava_next"
    #: whose packing code it is
    packer: ClassVar[Any] = LlavaNextModel

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self._known: dict[tuple[Any, ...], Layout] = {}

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        side = self.config.vision_config.image_size
        size = size or (2 * side, 2 * side)
        sizes = torch.tensor([size], device="cpu")
        return {"pixel_values": random_pixels(1, self.tiles(size), 3, side, side), "image_sizes": sizes}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        sizes = [(height, width) for height, width in integers(inputs["image_sizes"])]
        return [self.layout(size, self.tiles(size)) for size in sizes]

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        tiles = torch.stack(list(views))
        images = list(tiles.split([len(layout.views) for layout in layouts]))
        # the packing code puts the number of tokens where the first image is: in no memory, for that nothing waits
        nowhere = tiles.new_empty((1, 0, tiles.shape[-1]), device="meta")
        packed, _ = self.packer.pack_image_features(
            stand_in(config=self.config),
            [nowhere, *images],
            [(1, 1), *(layout.image_size for layout in layouts)],
            image_newline=tiles.new_full((tiles.shape[-1],), float("nan")),
            **self.packing,
        )
        return packed[1:]

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
        return image_size_to_num_patches(size, self.config.image_grid_pinpoints, self.config.vision_config.image_size)

    def layout(self, size: tuple[int, int], tiles: int) -> Layout:
        """The layout of an image of a size (height, width) that the tower sees in some tiles."""
        key = (size, tiles, *self.packing.values())
        if key not in self._known:
            self._known[key] = self._layout(size, tiles)
        return self._known[key]

    def _layout(self, size: tuple[int, int], tiles: int) -> Layout:
        patches = self.side**2
        unknown = Layout(grids=(), views=(patches,) * tiles, image_size=size)
        # the packing code itself says where the newlines are: they come back as NaN
        is_newline = self.pack([torch.zeros(patches, 1, device="cpu")] * tiles, [unknown])[0][:, 0].isnan()
        newlines = tuple(is_newline.nonzero()[:, 0].tolist())
        grids: tuple[tuple[int, int], ...] = ((self.side, self.side),)
        if tiles > 1:
            grids += ((len(newlines), newlines[0] - patches),)
        return replace(unknown, grids=grids, newlines=newlines)
