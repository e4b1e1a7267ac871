"""LLaVA-1.5 and its like: one grid of patches an image, each patch one visual token. Any tower."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.families.family import Family
from multimodal.layout import Layout


class Llava(Family):
    """``LlavaForConditionalGeneration``; a Pixtral tower reads images in their own sizes."""

    model_type = "llava"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        newlines = (0,) if strategy == "full" and _has_class_token(self.vision_tower) else ()
        images, _, *padded = inputs["pixel_values"].shape
        sizes = inputs.get("image_sizes")
        sizes = [padded] * images if sizes is None else torch.as_tensor(sizes).tolist()
        layouts = []
        for height, width in sizes:
            rows, columns = height // self.patch_size, width // self.patch_size
            grid = (rows // self.joined, columns // self.joined)
            layouts.append(Layout(grids=(grid,), newlines=newlines, views=(rows * columns,)))
        return layouts

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        side, parts = self.patch_size * self.joined, []
        for image, layout in zip(pixels, layouts, strict=True):
            rows, columns = layout.grids[0]
            parts.append(super().patch_pixels(image[None, :, : rows * side, : columns * side], [layout]))
        return torch.cat(parts)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        extra = len(layouts[0].newlines)
        return [torch.nn.functional.pad(view, (0, 0, extra, 0), value=float("nan")) for view in views]

    @property
    def joined(self) -> int:
        """Patches along a visual token."""
        return 1


def _has_class_token(tower: torch.nn.Module) -> bool:
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
