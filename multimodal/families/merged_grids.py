"""Images and videos of any size: grids of patches, some of which are merged into each visual token."""

from collections.abc import Sequence

from torch import Tensor

from multimodal.layout import Layout


def layouts_of_grids(grid_thw: Tensor, sides: Sequence[int], video: bool) -> list[Layout]:
    """The layout of each image or video.

    Args:
        grid_thw: grids, rows and columns of patches of each ``[images, 3]``.
        sides: for each, patches along a visual token.
        video: whether the grids are frames.
    """
    return [
        Layout(grids=((rows // side, columns // side),) * times, views=(rows * columns,) * times, video=video)
        for (times, rows, columns), side in zip(grid_thw.tolist(), sides, strict=True)
    ]
