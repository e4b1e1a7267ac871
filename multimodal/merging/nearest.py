"""Nearest kept token: every token that is not kept is averaged into the kept one that it is most like.

As VScan (arXiv 2505.22654) merges: merged = (kept + Σ assigned) / (1 + assigned).
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.gathering import tokens_at
from multimodal.merging.rule import MergingRule
from multimodal.selection import Selection

if TYPE_CHECKING:
    from multimodal.methods.method import Method, VisualTokens

CHUNK = 1 << 24  # similarities formed at once


class NearestMerging(MergingRule):
    """Merge every pruned token into the kept token whose features have the highest cosine with its own."""

    rule: Literal["nearest"] = "nearest"

    def reduce(self, method: "Method", tokens: "VisualTokens", count: int) -> Selection:
        return merge_into_nearest(method.select(tokens, count), tokens.features)


def merge_into_nearest(kept: Tensor, features: Tensor) -> Selection:
    """Average all tokens into their most similar kept ones.

    Args:
        kept: sorted indices into the tokens ``[images, count]``.
        features: what is compared ``[images, n, C]``.
    """
    owner = most_similar(features, kept)
    owner = owner.scatter(1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept))
    members = torch.zeros_like(kept, dtype=torch.float32)
    members = members.scatter_add(1, owner, torch.ones_like(owner, dtype=torch.float32))
    return Selection(kept, owner, 1 / members.gather(1, owner))


def most_similar(features: Tensor, targets: Tensor) -> Tensor:
    """Which of some tokens each token is most like, by cosine ``[images, n]``, as an index into ``targets``.

    Args:
        features: ``[images, n, C]``.
        targets: indices of those that are chosen from ``[images, count]``.
    """
    unit = normalize(features.float(), dim=-1)
    chosen = tokens_at(unit, targets).transpose(1, 2)
    rows = max(1, CHUNK // (len(targets) * targets.shape[1]))
    return torch.cat([(part @ chosen).argmax(-1) for part in unit.split(rows, 1)], 1)
