"""Random tokens: the baseline that many published methods fail to beat (UniPruneBench, arXiv 2511.02650)."""

from typing import Literal

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.methods.method import Method, VisualTokens


class Random(Method):
    """Keep a random subset, drawn anew at every step; the same subset for images of the same size.

    Args:
        seed: of the draw.
    """

    name: Literal["random"] = "random"
    seed: int = 0

    def score(self, tokens: VisualTokens) -> Tensor:
        images, left = tokens.index.shape
        return constant(_drawn, tokens.index.device, self.seed * 1000 + tokens.layer, left).expand(images, left)


def _drawn(seed: int, number: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(number, generator=generator, dtype=torch.float32, device="cpu")
