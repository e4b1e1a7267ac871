"""Views whose patches a pixel shuffle joins: ``n × n`` patches become the channels of one visual token."""

from collections.abc import Callable, Sequence
from math import isqrt

import torch
from torch import Tensor

from multimodal.layout import Layout


def square_layout(patches: int, joined: int) -> Layout:
    """The layout of one square view.

    Args:
        patches: of the view.
        joined: patches along a visual token.
    """
    side = isqrt(patches) // joined
    return Layout(grids=((side, side),), views=(patches,))


def pack_shuffled(
    views: Sequence[Tensor], layouts: Sequence[Layout], shuffle: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Average a map over the patches that a model's pixel shuffle joins.

    Args:
        views: ``[patches, channels]`` of each view.
        layouts: of the images.
        shuffle: the model's own: ``[maps, patches, 1]`` → ``[maps, visual tokens, patches of one]``.
    """
    maps = torch.stack(list(views)).transpose(1, 2)  # views, channels, patches
    tokens = shuffle(maps.flatten(0, 1).unsqueeze(-1)).mean(-1).unflatten(0, maps.shape[:2]).transpose(1, 2)
    return [image.flatten(0, 1) for image in tokens.split([len(layout.views) for layout in layouts])]
