"""What is done for one version of transformers or another, in one place.

Supported are transformers 5.0 up to the newest that the tests run on.
"""

import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, Cache, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

CACHE_NAMES = ("cache", "past_key_values")  # now, and before 5.18
WINDOWS_APART = importlib.util.find_spec("transformers.vision_utils") is not None  # else they are the tower's
CROPS_BY_REMOVAL = "tokens_to_remove" in inspect.signature(Cache.crop).parameters


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache among a forward's arguments, under either name; None if there is none."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


def cropped_tokens(tokens: int, length: int) -> int:
    """How many tokens ``Cache.crop(tokens)`` removes from a cache that counts ``length``.

    A negative number is what to remove; else older versions take it for the length to keep, newer ones know only 0.
    """
    if tokens < 0 or (CROPS_BY_REMOVAL and not tokens):
        return -tokens
    return max(length - tokens, 0)


def tells_token_types(config: PretrainedConfig) -> bool:
    """Whether a model is told which tokens are visual; older versions find out by themselves."""
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[CONFIG_MAPPING[config.model_type]]
    return "mm_token_type_ids" in inspect.signature(inspect.unwrap(kind.forward)).parameters


def window_order(grid_thw: Tensor, vision: Any) -> Tensor:
    """Which merge unit a windowed Qwen2.5-VL tower reads first, second, … ``[units]``.

    Args:
        grid_thw: grids, rows and columns of patches of each image ``[images, 3]``.
        vision: config of the tower.
    """
    side = vision.spatial_merge_size
    with torch.device("cpu"):  # it makes tensors of its own
        if WINDOWS_APART:
            from transformers.vision_utils import get_vision_window_index

            return get_vision_window_index(grid_thw, side, vision.window_size, vision.patch_size)[0]
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

        known = {"spatial_merge_size": side, "window_size": vision.window_size, "patch_size": vision.patch_size}
        tower = SimpleNamespace(**known, spatial_merge_unit=side**2)
        return Tower.get_window_index(tower, grid_thw)[0]  # type: ignore[attr-defined]


def grid_inputs(tower: Any, grids: Sequence[tuple[int, int, int]]) -> dict[str, Tensor]:
    """What a tower that packs images works out of their grids, on the CPU; older versions cannot be handed it.

    Args:
        tower: the vision encoder.
        grids: (frames, rows, columns) of each image or video, in patches.
    """
    if not WINDOWS_APART:
        return {}
    from transformers import vision_utils

    uses = vars(sys.modules[type(tower).__module__])
    if "get_vision_attention_seqlens" not in uses:
        return {}
    side = tower.spatial_merge_size
    with torch.device("cpu"):  # they make tensors of their own
        grid_thw = torch.tensor(grids)
        made = {"cu_seqlens": vision_utils.get_vision_cu_seqlens(grid_thw)}
        made["position_ids"] = vision_utils.get_vision_position_ids(grid_thw, side)
        if "get_vision_window_index" in uses:
            sizes = tower.window_size, tower.patch_size
            order, ends = vision_utils.get_vision_window_index(grid_thw, side, *sizes)
            made |= {"window_index": order, "cu_window_seqlens": ends}
        if "get_vision_interpolation_indices_and_weights" in uses:
            indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                grid_thw,
                tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=side,
            )
            made |= {"interp_indices": indices, "interp_weights": weights}
    return made
