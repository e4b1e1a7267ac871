"""Idefics3: square tiles with separator text between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from multimodal.families.geometry import Geometry, stand_in
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class Idefics3(Geometry):
    """``Idefics3ForConditionalGeneration``; a tile is an image of its own, since text stands between tiles."""

    model_type = "idefics3"
    tower_path = "vision_model"
    text_path = "text_model"
    #: whose packing code it is
    connector: ClassVar[Any] = Idefics3Connector

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        return {"pixel_values": super().random_image()["pixel_values"].unsqueeze(0)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        pixels = inputs["pixel_values"]  # [prompts, most tiles of one, 3, H, W]
        patches = (pixels.shape[-2] // self.patch_size) * (pixels.shape[-1] // self.patch_size)
        return [square_layout(patches, self.config.scale_factor)] * self.tiles(pixels)

    def tiles(self, pixels: Tensor) -> int:
        """How many tiles the model reads: it leaves out those that are all 0, so it waits for the device, too."""
        return int((pixels != 0).flatten(2).any(-1).sum())

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        scale = self.config.scale_factor
        return pack_shuffled(views, layouts, lambda maps: self.connector.pixel_shuffle(stand_in(), maps, scale))
