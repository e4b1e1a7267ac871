"""DivPrune (CVPR 2025, arXiv 2503.02175): the tokens that are least like each other."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens

CHUNK = 1 << 24  # similarities formed at once


class DivPrune(Method):
    """Max–min diversity: begin with the token that is farthest from its nearest neighbour, then add, again and again,
    the one that is farthest from all that were chosen. Distance is 1 − cosine similarity of the tokens' features.

    The choice is sequential by nature: one small launch a kept token, none of which waits for the device. The paper
    takes one step, before the language model.
    """

    name: Literal["divprune"] = "divprune"

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        features = normalize(tokens.features.float(), dim=-1)
        chosen = [_most_isolated(features)]
        similar = torch.full(features.shape[:-1], -torch.inf, device=features.device)  # to the nearest chosen one
        while len(chosen) < count:
            newest = tokens_at(features, chosen[-1])
            similar = torch.maximum(similar, (features @ newest.transpose(1, 2)).squeeze(-1))
            similar = similar.scatter(1, chosen[-1], torch.inf)
            chosen.append(similar.argmin(1, keepdim=True))
        return torch.cat(chosen, 1).sort(1).values


def _most_isolated(features: Tensor) -> Tensor:
    """The token whose most similar other token is least similar ``[images, 1]``."""
    rows = max(1, CHUNK // features[..., 0].numel())
    nearest = []
    for first in range(0, features.shape[1], rows):
        similar = features[:, first : first + rows] @ features.transpose(1, 2)
        similar.diagonal(first, 1, 2).fill_(-torch.inf)
        nearest.append(similar.amax(-1))
    return torch.cat(nearest, 1).argmin(1, keepdim=True)
