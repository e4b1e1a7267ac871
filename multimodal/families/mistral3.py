"""Mistral 3: images in their own sizes, ``n × n`` patches joined into a visual token, a text token after each row."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from multimodal.families.llava import Llava
from multimodal.layout import Layout


class Mistral3(Llava):
    """``Mistral3ForConditionalGeneration``."""

    model_type = "mistral3"

    @property
    def joined(self) -> int:
        return self.config.spatial_merge_size

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        unit = self.patch_size * self.joined
        height, width = (side // unit * unit for side in size or (448, 448))
        pixels = torch.randn(1, 3, height, width, dtype=self.model.dtype, device=self.model.device)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]], device=pixels.device)}

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        # the model's own joining ends in a linear layer
        return [
            avg_pool2d(view.T.unflatten(1, (layout.grids[0][0] * self.joined, -1)), self.joined).flatten(1).T
            for view, layout in zip(views, layouts, strict=True)
        ]
