"""Idefics3: square tiles with separator text between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from multimodal.families.family import Family
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class Idefics3(Family):
    """``Idefics3ForConditionalGeneration``; a tile is an image of its own, since text stands between tiles."""

    model_type = "idefics3"

    @property
    def text_model(self) -> PreTrainedModel:
        return self.base.text_model

    @property
    def vision_tower(self) -> PreTrainedModel:
        return self.base.vision_model

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        return {"pixel_values": super().random_image()["pixel_values"].unsqueeze(0)}

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        pixels = inputs["pixel_values"]  # [prompts, most tiles of one, 3, H, W]
        tiles = int((pixels != 0).flatten(2).any(-1).sum())  # the model leaves out those that are all 0
        patches = (pixels.shape[-2] // self.patch_size) * (pixels.shape[-1] // self.patch_size)
        return [square_layout(patches, self.config.scale_factor)] * tiles

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        connector = self.base.connector
        return pack_shuffled(views, layouts, lambda maps: connector.pixel_shuffle(maps, connector.scale_factor))
