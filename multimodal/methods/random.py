"""Random tokens: the baseline that many published methods fail to beat (UniPruneBench, arXiv 2511.02650)."""

from typing import Literal

import torch
from torch import Tensor

from multimodal.methods.method import Method, VisualTokens


class Random(Method):
    """Keep a random subset, drawn anew at every step; the same subset for images of the same size.

    Args:
        seed: of the draw.
    """

    name: Literal["random"] = "random"
    seed: int = 0

    def score(self, tokens: VisualTokens) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(self.seed * 1000 + tokens.layer)
        images, left = tokens.index.shape
        return (
            torch.rand(left, generator=generator, dtype=torch.float32, device="cpu")
            .to(tokens.index.device)
            .expand(images, left)
        )
