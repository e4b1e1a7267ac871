"""Aya Vision: square tiles with separator text between them, ``n × n`` patches joined into a visual token."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionMultiModalProjector
from transformers.models.cohere2_vision.modeling_cohere2_vision import Cohere2VisionMultiModalProjector

from multimodal.families.geometry import Geometry, stand_in
from multimodal.families.pixel_shuffle import pack_shuffled, square_layout
from multimodal.layout import Layout


class AyaVision(Geometry):
    """``AyaVisionForConditionalGeneration``; a tile is an image of its own, since text stands between tiles."""

    model_type = "aya_vision"
    #: whose packing code it is
    projector: ClassVar[Any] = AyaVisionMultiModalProjector

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        tiles, _, height, width = inputs["pixel_values"].shape
        patches = (height // self.patch_size) * (width // self.patch_size)
        return [square_layout(patches, self.config.downsample_factor)] * tiles

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        own = stand_in(downsample_factor=self.config.downsample_factor)
        return pack_shuffled(views, layouts, lambda maps: self.projector.pixel_shuffle(own, maps).flatten(1, 2))


class Cohere2Vision(AyaVision):
    """``Cohere2VisionForConditionalGeneration``: Command A Vision."""

    model_type = "cohere2_vision"
    projector = Cohere2VisionMultiModalProjector
