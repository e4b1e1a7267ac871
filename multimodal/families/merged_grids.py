"""Images and videos of any size: grids of patches, some of which are merged into each visual token."""

from collections.abc import Sequence
from typing import Any

from multimodal.families.geometry import integers
from multimodal.layout import Layout


def layouts_of_grids(grid_thw: Any, sides: Sequence[int] | int, video: bool) -> list[Layout]:
    """The layout of each image or video.

    Args:
        grid_thw: grids, rows and columns of patches of each ``[images, 3]``.
        sides: patches along a visual token, one for all or one for each.
        video: whether the grids are frames.
    """
    grids = integers(grid_thw)
    sides = [sides] * len(grids) if isinstance(sides, int) else sides
    return [
        Layout(grids=((rows // side, columns // side),) * times, views=(rows * columns,) * times, video=video)
        for (times, rows, columns), side in zip(grids, sides, strict=True)
    ]


def tower_grids(layouts: Sequence[Layout], sides: Sequence[int] | int) -> list[tuple[int, int, int]]:
    """(grids, rows, columns) of each image or video, in patches: what its layout was made of."""
    sides = [sides] * len(layouts) if isinstance(sides, int) else sides
    return [
        (len(layout.grids), side * layout.grids[0][0], side * layout.grids[0][1])
        for layout, side in zip(layouts, sides, strict=True)
    ]
