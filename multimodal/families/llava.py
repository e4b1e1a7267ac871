"""LLaVA-1.5 and its like: one square grid of patches an image, each patch one visual token. Any tower."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.families.family import Family
from multimodal.layout import Layout


class Llava(Family):
    """``LlavaForConditionalGeneration``."""

    model_type = "llava"

    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        images, _, height, width = inputs["pixel_values"].shape
        grid = (height // self.patch_size, width // self.patch_size)
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        has_class_token = strategy == "full" and _has_class_token(self.vision_tower)
        layout = Layout(grids=(grid,), newlines=(0,) if has_class_token else (), views=(grid[0] * grid[1],))
        return [layout] * images

    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        extra = len(layouts[0].newlines)
        return [torch.nn.functional.pad(view, (0, 0, extra, 0), value=float("nan")) for view in views]


def _has_class_token(tower: torch.nn.Module) -> bool:
    return any(name.endswith(("class_embedding", "cls_token")) for name, _ in tower.named_parameters())
