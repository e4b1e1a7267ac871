"""Spatially even tokens: a baseline that looks at nothing."""

from typing import Literal

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.layout import Layout
from multimodal.methods.method import Method, VisualTokens


class Uniform(Method):
    """Keep tokens spread evenly over every grid, in the order of an ordered-dither (Bayer) matrix.

    Any prefix of that order is spread evenly, so every count is, and later steps thin out evenly what is left.
    """

    name: Literal["uniform"] = "uniform"

    def score(self, tokens: VisualTokens) -> Tensor:
        return constant(_spread_score, tokens.index.device, tokens.layout)[tokens.index]


def _spread_score(layout: Layout) -> Tensor:
    longest = max(max(grid) for grid in layout.grids)
    return -bayer_rank(layout.cells[:, 1], layout.cells[:, 2], bits=(longest - 1).bit_length()).float()


def bayer_rank(row: Tensor, column: Tensor, bits: int) -> Tensor:
    """Rank of a cell in the 2^bits × 2^bits Bayer matrix: the bit-reversed interleaving of row ⊕ column and row.

    Args:
        row: ``[N]``.
        column: ``[N]``.
        bits: such that rows and columns are below 2^bits.
    """
    rank = torch.zeros_like(row)
    for bit in range(bits):
        x, y = ((row ^ column) >> bit) & 1, (row >> bit) & 1
        rank = (rank << 2) | (x << 1) | y
    return rank
