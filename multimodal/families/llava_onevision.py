"""LLaVA-OneVision: as LLaVA-NeXT-Video, but tiles beyond a number are shrunk, and only single images are cut."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import LlavaOnevisionModel

from multimodal.families.geometry import integers, stand_in
from multimodal.families.llava_next_video import LlavaNextVideo
from multimodal.layout import Layout


class LlavaOnevision(LlavaNextVideo):
    """``LlavaOnevisionForConditionalGeneration``."""

    model_type = "llava_onevision"
    packer = LlavaOnevisionModel
    video_newlines = 1

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        sizes = [(height, width) for height, width in integers(inputs["image_sizes"])]
        counts = inputs.get("batch_num_images")
        alone = [True] * len(sizes) if counts is None else [n == 1 for n in integers(counts) for _ in range(n)]
        return [self.layout(size, self.tiles(size) if cut else 1) for size, cut in zip(sizes, alone, strict=True)]

    @property
    def packing(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}

    def pool(self, frames: Tensor) -> Tensor:
        return self.packer.apply_pooling(stand_in(config=self.config), frames)
