"""Pictures of what a method sees in an image and what it keeps."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from multimodal.layout import Layout

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

KEPT, RECYCLED = "#f97316", "#2563eb"


def grid_maps(values: Tensor, layout: Layout) -> list[np.ndarray]:
    """A map over an image's patch tokens ``[patch tokens]`` as one array ``[rows, columns]`` for each grid."""
    sizes = [rows * columns for rows, columns in layout.grids]
    parts = values.float().cpu().split(sizes)
    return [part.view(grid).numpy() for part, grid in zip(parts, layout.grids, strict=True)]


def draw_image(axes: Axes, image: Image.Image, title: str) -> None:
    """The image alone."""
    axes.imshow(image)
    _finish(axes, title)


def draw_map(axes: Axes, image: Image.Image, values: np.ndarray, title: str) -> None:
    """A map over the image it belongs to."""
    axes.imshow(image, extent=(0, values.shape[1], values.shape[0], 0))
    low, high = np.percentile(values, (2, 98))  # a few tokens attract most attention and would hide the rest
    axes.imshow(values, extent=(0, values.shape[1], values.shape[0], 0), cmap="magma", alpha=0.75, vmin=low, vmax=high)
    _finish(axes, title)


def draw_kept(
    axes: Axes, image: Image.Image, kept: np.ndarray, sizes: np.ndarray | None, cells: np.ndarray | None, title: str
) -> None:
    """The image, dropped patches dimmed; recycled tokens and the cells they stand for in blue.

    Args:
        axes: where to draw.
        image: the picture.
        kept: True at tokens left ``[rows, columns]``.
        sizes: how many tokens each stands for ``[rows, columns]``, or None.
        cells: cell of each token ``[rows, columns]``, or None.
        title: above it.
    """
    rows, columns = kept.shape
    axes.imshow(image, extent=(0, columns, rows, 0))
    shade = np.zeros((rows, columns, 4))
    shade[..., 3] = np.where(kept, 0.0, 0.78)
    axes.imshow(shade, extent=(0, columns, rows, 0))
    if cells is not None:
        for row, column in np.argwhere(cells[:, 1:] != cells[:, :-1]):
            axes.plot([column + 1] * 2, [row, row + 1], color=RECYCLED, linewidth=0.8)
        for row, column in np.argwhere(cells[1:] != cells[:-1]):
            axes.plot([column, column + 1], [row + 1] * 2, color=RECYCLED, linewidth=0.8)
    for row, column in np.argwhere(kept):
        merged = sizes is not None and sizes[row, column] > 1
        box = (column + 0.06, row + 0.06)
        colour = RECYCLED if merged else KEPT
        axes.add_patch(plt.Rectangle(box, 0.88, 0.88, fill=False, edgecolor=colour, linewidth=1))
    _finish(axes, title)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, parse_math=False)  # questions have dollars
    axes.set_xticks([])
    axes.set_yticks([])


def save_panels(path: Path, title: str, panels: Sequence[Sequence[Callable[[Axes], None]]]) -> None:
    """Draw rows of panels, each a function of axes, and write a PNG.

    Args:
        path: of the PNG.
        title: above all.
        panels: rows of functions that draw into axes.
    """
    rows, columns = len(panels), max(map(len, panels))
    size = (2.6 * columns, 2.75 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for row, drawers in zip(axes, panels, strict=True):
        for cell in row[len(drawers) :]:
            cell.axis("off")
        for cell, draw in zip(row, drawers, strict=False):
            draw(cell)
    figure.suptitle(title, fontsize=10, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def place_on_grids(layout: Layout, index: Tensor) -> list[np.ndarray]:
    """Tokens left, by index ``[n]`` among the image's patch tokens, as one array for each grid: True where left."""
    left = torch.zeros(layout.patch_tokens)
    left[index] = 1
    return [grid.astype(bool) for grid in grid_maps(left, layout)]
