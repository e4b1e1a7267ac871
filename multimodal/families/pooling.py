"""Square views whose patches are averaged, ``n × n`` to a visual token."""

from collections.abc import Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


def pack_pooled(views: Sequence[Tensor], joined: int, ceil: bool = False) -> list[Tensor]:
    """Average a map over the patches of each visual token.

    Args:
        views: ``[patches, channels]`` of each view, all of one size.
        joined: patches along a visual token.
        ceil: whether patches that are left over at the end of a row or column make visual tokens, too.

    Returns:
        ``[visual tokens, channels]`` of each view.
    """
    side = isqrt(len(views[0]))
    maps = torch.stack(list(views)).transpose(1, 2).unflatten(2, (side, side))  # views, channels, rows, columns
    return list(avg_pool2d(maps, joined, ceil_mode=ceil).flatten(2).transpose(1, 2).unbind())
