"""One image after the step before the language model, and the rows of numbers as which it travels to an engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 256  # bfloat16 holds whole numbers up to 256 exactly


@dataclass(frozen=True)
class LeftOfImage:
    """One image after the step before the language model.

    Args:
        features: what the language model's first layer is to see ``[k, C]``.
        positions: of these tokens on each rotary axis, counted from where the image begins ``[axes, k]``.
        span: positions that the image takes: with original ones as many as unpruned, so that the text after it goes on
            as in the unpruned prompt.
        visual_tokens: of the unpruned image.
    """

    features: Tensor
    positions: Tensor
    span: int
    visual_tokens: int


def columns(axes: int) -> int:
    """How many numbers a row has beside its features: two digits of a position on each axis, and of the span."""
    return 2 * axes + 2


def packed(left: LeftOfImage) -> Tensor:
    """One row a token: its features, its positions, and the whole image's span ``[k, C + columns]``."""
    span = torch.full((1, len(left.features)), left.span)
    numbers = torch.cat([left.positions, span]).T.to(left.features.device)
    digits = torch.stack([numbers // BASE, numbers % BASE], -1).flatten(1)
    return torch.cat([left.features, digits.to(left.features.dtype)], 1)


def unpacked(rows: Tensor, axes: int) -> tuple[Tensor, int]:
    """What :func:`packed` put beside the features.

    Args:
        rows: of an image ``[k, C + columns]``.
        axes: of the rotary embedding.

    Returns:
        Positions from where the image begins ``[axes, k]``, and the span.
    """
    digits = rows[:, -columns(axes) :].long().cpu().view(len(rows), axes + 1, 2)
    numbers = (digits[..., 0] * BASE + digits[..., 1]).T
    return numbers[:-1], int(numbers[-1, 0])
