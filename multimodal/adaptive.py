"""Budgets that adapt: images with more to see keep more, under a cap, and the budget is met on average over the data.

What an image has to see is the variety of its visual tokens: 1 − the length of their mean direction, 0 where all point
the same way. It is read from the embeddings that the language model is given, before any step, and is the one thing
that a prompt is waited for: counts follow from it.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.layout import Layout
from multimodal.ranges import SearchRange

DIGITS = 3  # of an image's share, so that rounding in the embeddings changes no count


class Adaptive(BaseModel):
    """How keep ratios follow an image.

    The first step's keep ratio is multiplied by (variety / reference) ^ strength, within [1 / cap, cap]; later steps
    keep their share of what is left.

    Args:
        strength: 0 gives every image the same share.
        reference: variety of an image that keeps the ratio as it is; a search takes the mean over its samples.
        cap: the most that an image may keep, in multiples of its equal share, and the least.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    strength: Annotated[float, Field(ge=0, le=8), SearchRange(0, 4)]
    reference: float = Field(gt=0, le=1)
    cap: float = Field(default=2.0, ge=1)

    def share(self, variety: float) -> float:
        """An image's keep ratio before the first step, in multiples of the schedule's."""
        share = (max(variety, 1e-6) / self.reference) ** self.strength
        return round(min(max(share, 1 / self.cap), self.cap), DIGITS)

    def weighted(self, layouts: Sequence[Layout], varieties: Sequence[float]) -> list[Layout]:
        """The layouts of some images, with what each may keep."""
        pairs = zip(layouts, varieties, strict=True)
        return [replace(layout, keep_weight=self.share(variety)) for layout, variety in pairs]


def variety(tokens: Tensor) -> Tensor:
    """1 − the length of the mean of some tokens' directions: ``[n, C]`` → ``[]``, float32, in [0, 1]."""
    return 1 - normalize(tokens.float(), dim=-1).mean(0).norm()


def reference_of(varieties: Sequence[float]) -> float:
    """The variety of an image that keeps the ratio as it is: the mean over the data's."""
    return max(fmean(varieties), 1e-6)


def varieties(tokens: Sequence[Tensor]) -> list[float]:
    """Of several images, ``[n, C]`` each; waits for the device once."""
    return torch.stack([variety(each) for each in tokens]).tolist() if tokens else []
