"""What is done in families for one version of transformers or another. Supported is 5.0 up to the newest tested."""

import inspect
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from multimodal.families.geometry import stand_in
from multimodal.versions import CACHE_NAMES

# whether Gemma 3's windows hide tokens of one's own image; older versions let those see each other across the window
WINDOW_CUTS_IMAGES = hasattr(modeling_gemma3, "create_masks_for_vision_model")


def cache_name(text_model: nn.Module) -> str:
    """What a text model calls its cache argument."""
    parameters = inspect.signature(inspect.unwrap(type(text_model).forward)).parameters
    return next(name for name in CACHE_NAMES if name in parameters)


def takes_token_kinds(model_type: str) -> bool:
    """Whether a model is told which tokens are text, image or video; older versions find out by themselves."""
    model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[CONFIG_MAPPING[model_type]]
    return "mm_token_type_ids" in inspect.signature(model.forward).parameters


@lru_cache(maxsize=64)
def window_order(
    grids: Sequence[tuple[int, int, int]], merge_size: int, window_size: int, patch_size: int
) -> tuple[Tensor, Tensor]:
    """Which merge unit a tower with windows reads first, second, … ``[units]``, and the inverse; on the CPU.

    Args:
        grids: (frames, rows, columns) of each image or video, in patches.
        merge_size: patches along a merge unit.
        window_size: pixels along a window.
        patch_size: pixels along a patch.
    """
    # the model's own code creates tensors on the default device; these are kept, so they are no inference tensors
    with torch.device("cpu"), torch.inference_mode(False):
        grid_thw = torch.tensor(grids)
        if hasattr(Qwen2_5_VisionTransformerPretrainedModel, "get_window_index"):  # where transformers 5.0 keeps it
            tower = stand_in(
                window_size=window_size,
                spatial_merge_size=merge_size,
                patch_size=patch_size,
                spatial_merge_unit=merge_size**2,
            )
            order = Qwen2_5_VisionTransformerPretrainedModel.get_window_index(tower, grid_thw)[0]
        else:
            from transformers.vision_utils import get_vision_window_index

            order = get_vision_window_index(grid_thw, merge_size, window_size, patch_size)[0]
        return order, order.argsort()
