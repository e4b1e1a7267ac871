"""LLaVA-1.5 and its like: one grid of patches an image, each patch one visual token. Any tower."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.families.geometry import Geometry, integers
from multimodal.layout import Layout

#: types of vision towers whose sequence begins with a class token, register tokens behind it
CLASS_TOKEN = frozenset(
    {
        "beit",
        "chinese_clip_vision_model",
        "clip_vision_model",
        "data2vec-vision",
        "dinov2",
        "dinov2_with_registers",
        "dinov3_vit",
        "mlcd_vision_model",
        "vit",
        "vit_msn",
    }
)


class Llava(Geometry):
    """``LlavaForConditionalGeneration``; a Pixtral tower reads images in their own sizes."""

    model_type = "llava"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        images, _, *padded = inputs["pixel_values"].shape
        sizes = inputs.get("image_sizes")
        sizes = [padded] * images if sizes is None else integers(sizes)
        return [self.layout(height // self.patch_size, width // self.patch_size) for height, width in sizes]

    def layout(self, rows: int, columns: int) -> Layout:
        """The layout of an image of which the tower sees so many rows and columns of patches."""
        newlines = tuple(range(self._extra_tokens))
        return Layout(grids=((rows, columns),), newlines=newlines, views=(rows * columns,))

    def tower_grid(self, layout: Layout) -> tuple[int, int]:
        """Rows and columns of patches that the tower sees of an image."""
        return layout.grids[0]

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        side, parts = self.patch_size, []
        for image, layout in zip(pixels, layouts, strict=True):
            rows, columns = self.tower_grid(layout)
            parts.append(super().patch_pixels(image[None, :, : rows * side, : columns * side], [layout]))
        return torch.cat(parts)

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        if not self._extra_tokens:
            return list(views)
        extra = (0, 0, self._extra_tokens, 0)
        return [torch.nn.functional.pad(view, extra, value=float("nan")) for view in views]

    @property
    def _extra_tokens(self) -> int:
        """Class and register tokens that become visual tokens; by default the first token of the tower does not."""
        tower, strategy = self.config.vision_config, getattr(self.config, "vision_feature_select_strategy", "default")
        if tower.model_type not in CLASS_TOKEN:
            return 0
        return (getattr(tower, "num_register_tokens", None) or 0) + (strategy == "full")
