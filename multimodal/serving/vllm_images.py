"""A pruned image as vLLM reads ready embeddings."""

from typing import Any

import torch
from torch import Tensor

from multimodal.families import Geometry
from multimodal.serving.rows import LeftOfImage, packed


def vllm_image(image: LeftOfImage, geometry: Geometry) -> dict[str, Tensor]:
    """The tensors of one image, by vLLM's names, for our plugin.

    Args:
        image: what is left of it.
        geometry: of the model.
    """
    rows = packed(image)
    tensors = {"image_embeds": rows.cpu().contiguous()}
    if geometry.rotary_axes > 1:  # vLLM counts such a family's tokens by a grid: one row of as many merged patches
        config: Any = geometry.config
        merge = config.vision_config.spatial_merge_size
        tensors["image_grid_thw"] = torch.tensor([1, merge, merge * len(rows)])
    return tensors
