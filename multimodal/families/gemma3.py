"""Gemma 3: patches pooled to one number of tokens an image, whose tokens attend both ways; most layers see a window.

Pan-and-scan crops are images of their own.
"""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers.models.gemma3 import modeling_gemma3

from multimodal.families.geometry import Geometry
from multimodal.families.pooling import pack_pooled
from multimodal.layout import Layout


class Gemma3(Geometry):
    """``Gemma3ForConditionalGeneration``."""

    model_type = "gemma3"
    bidirectional = True
    # older versions let an image's tokens see each other across the window
    window_cuts_blocks = hasattr(modeling_gemma3, "create_masks_for_vision_model")

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (input_ids == self.image_token_id).long()}

    def bidirectional_blocks(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if (types := inputs.get("token_type_ids")) is None:
            return None
        is_image = types[:, -inputs["input_ids"].shape[1] :] == 1  # generate() may tell those of earlier turns, too
        starts = is_image & ~pad(is_image, (1, 0))[:, :-1]
        return (starts.cumsum(1) - 1).where(is_image, -1)

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        side = isqrt(self.config.mm_tokens_per_image)
        return [Layout(grids=((side, side),), views=(self._side**2,))] * len(inputs["pixel_values"])

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        # the projector's pooling, which has no function of its own
        return pack_pooled(views, self._side // isqrt(self.config.mm_tokens_per_image))

    @property
    def _side(self) -> int:
        """Patches along an image."""
        return self.config.vision_config.image_size // self.patch_size
