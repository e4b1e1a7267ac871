"""LLaVA-NeXT-Video: images as LLaVA-NeXT reads them, videos as frames of pooled patches."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaNextVideoModel
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler

from multimodal.families.geometry import stand_in
from multimodal.families.llava_next import LlavaNext
from multimodal.layout import Layout


class LlavaNextVideo(LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``."""

    model_type = "llava_next_video"
    packer: ClassVar[Any] = LlavaNextVideoModel
    #: newline tokens at a video's end
    video_newlines: ClassVar[int] = 0

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        pixels = inputs["pixel_values_videos"] if "pixel_values_videos" in inputs else inputs["pixel_values"]
        videos, frames = pixels.shape[:2]
        pooled = self.pool(torch.empty(1, self.side**2, 1, device="meta")).shape[1]
        layout = Layout(
            grids=((isqrt(pooled), isqrt(pooled)),) * frames,
            newlines=tuple(range(frames * pooled, frames * pooled + self.video_newlines)),
            views=(self.side**2,) * frames,
            video=True,
        )
        return [layout] * videos

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        if not layouts[0].video:
            return super().pack(views, layouts)
        tokens = self.pool(torch.stack(list(views))).split([len(layout.views) for layout in layouts])
        newlines = (0, 0, 0, self.video_newlines)
        return [torch.nn.functional.pad(frames.flatten(0, 1), newlines, value=float("nan")) for frames in tokens]

    def pool(self, frames: Tensor) -> Tensor:
        """The model's own pooling of ``[frames, patches, channels]``; a learned one is taken for an average."""
        settings = {"spatial_pool_stride": self.config.spatial_pool_stride, "vision_config": self.config.vision_config}
        mode = "average" if self.config.spatial_pool_mode == "conv" else self.config.spatial_pool_mode
        return LlavaNextVideoPooler(stand_in(spatial_pool_mode=mode, **settings))(frames)
