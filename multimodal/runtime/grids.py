"""What follows from the grids of packed images alone is made once and handed to their tower, which waits for none."""

from collections.abc import Mapping
from functools import lru_cache
from weakref import ref

import torch
from torch import Tensor, nn

from multimodal.constants import constant
from multimodal.runtime.windows import tell_ends
from multimodal.versions import grid_inputs

Grids = tuple[tuple[int, int, int], ...]  # (frames, rows, columns) of each image or video, in patches


def given_of_grids(tower: nn.Module, grids: Grids, device: torch.device) -> dict[str, Tensor]:
    """Arguments for a tower that packs images; none for another tower.

    Args:
        tower: the vision encoder.
        grids: of what it is given.
        device: where that is.
    """
    own, given = ref(tower), {}
    for name, made in _all(own, grids).items() if grids else ():
        given[name] = constant(_one, device, name, own, grids)
        if name.endswith("seqlens"):
            tell_ends(given[name], made.diff().tolist())
    return given


@lru_cache(maxsize=64)
def _all(tower: "ref[nn.Module]", grids: Grids) -> Mapping[str, Tensor]:
    with torch.inference_mode(False):  # they are kept, and an inference tensor could not be used for gradients later
        return grid_inputs(tower(), grids)


def _one(name: str, tower: "ref[nn.Module]", grids: Grids) -> Tensor:
    return _all(tower, grids)[name]
