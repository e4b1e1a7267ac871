"""How one image or video lies in the language model's input: which grids its visual tokens form, which are no patch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One image's or video's visual tokens, in the order in which the language model reads them.

    Hashable, so that images of one layout are handled together.

    Args:
        grids: (rows, columns) of each grid of patches, in order. A base view and its tiles are separate grids.
        newlines: index, among this image's visual tokens, of those that belong to no patch (newline or class tokens).
        views: patches of each view that the vision tower sees of it: the image, or its base view and tiles, or the
            frames of a video.
        image_size: (height, width) of the image before it was cut into tiles, or of what of it the tower sees, where
            packing must know; else None.
        video: whether the grids are the frames of a video.
        keep_weight: factor on the keep ratio of its first step, where budgets adapt (:mod:`multimodal.adaptive`).
    """

    grids: tuple[tuple[int, int], ...]
    newlines: tuple[int, ...] = ()
    views: tuple[int, ...] = ()
    image_size: tuple[int, int] | None = None
    video: bool = False
    keep_weight: float = 1.0

    @property
    def patch_tokens(self) -> int:
        """Visual tokens that belong to a patch and can be pruned."""
        return sum(rows * columns for rows, columns in self.grids)

    @property
    def visual_tokens(self) -> int:
        """All visual tokens, newline tokens included."""
        return self.patch_tokens + len(self.newlines)

    @cached_property
    def patch_index(self) -> Tensor:
        """Index of the patch tokens among this image's visual tokens ``[patch tokens]``, on the CPU."""
        newlines = set(self.newlines)
        patches = [token for token in range(self.visual_tokens) if token not in newlines]
        return torch.tensor(patches, dtype=torch.long, device="cpu")

    @cached_property
    def neighbours(self) -> Tensor:
        """The patch tokens above, below, left and right of each in its grid ``[patch tokens, 4]``, on the CPU.

        The number of patch tokens stands for one that is not there.
        """
        place, row, column = torch.arange(self.patch_tokens, device="cpu"), self.cells[:, 1], self.cells[:, 2]
        rows, columns = torch.tensor(self.grids, device="cpu")[self.cells[:, 0]].unbind(1)
        inside = torch.stack([row > 0, row < rows - 1, column > 0, column < columns - 1], 1)
        beside = torch.stack([place - columns, place + columns, place - 1, place + 1], 1)
        return beside.masked_fill(~inside, self.patch_tokens)

    @cached_property
    def cells(self) -> Tensor:
        """(grid, row, column) of each patch token ``[patch tokens, 3]``, on the CPU."""
        return torch.cat(
            [
                torch.cartesian_prod(
                    *(torch.arange(*ends, device="cpu") for ends in ((grid, grid + 1), (rows,), (cols,)))
                )
                for grid, (rows, cols) in enumerate(self.grids)
            ]
        )
