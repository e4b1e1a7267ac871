"""Clusters: a share of the kept tokens are the means of clusters of the others, found by density peaks.

As SparseVLM (arXiv 2410.04417) recycles: a token is a centre if many others are close to it and no denser one is.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from multimodal.gathering import tokens_at
from multimodal.merging.rule import MergingRule
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, others, ranked
from multimodal.selection import Selection

if TYPE_CHECKING:
    from multimodal.methods.method import Method, VisualTokens

CHUNK = 1 << 24  # distances formed at once
NEIGHBOURS = 5  # whose mean squared distance is a token's density


class ClusterMerging(MergingRule):
    """The method keeps most of the count; the tokens that it does not keep become cluster means, at their centres.

    Args:
        share: of the count that are cluster means, at least one.
    """

    rule: Literal["clusters"] = "clusters"
    share: Annotated[float, Field(gt=0, lt=1), SearchRange(0.05, 0.5, guesses=(0.2,))] = 0.2

    def reduce(self, method: "Method", tokens: "VisualTokens", count: int) -> Selection:
        left = tokens.index.shape[1]
        clusters = min(max(1, round(self.share * count)), count - 1)
        if count == left or clusters < 1:
            return Selection(method.select(tokens, count))
        kept = method.select(tokens, count - clusters)
        return merge_clusters(kept, others(kept, left), tokens.features, clusters)


def merge_clusters(kept: Tensor, pool: Tensor, features: Tensor, clusters: int) -> Selection:
    """Keep some tokens, and make clusters of some others; what is in neither is dropped.

    Args:
        kept: sorted indices into the tokens ``[images, k]``.
        pool: sorted indices of those that are clustered ``[images, p]``, at least ``clusters``.
        features: of all tokens ``[images, n, C]``.
        clusters: how many.

    Returns:
        k + clusters tokens, a cluster standing where its centre does.
    """
    images, tokens = features.shape[:2]
    own = tokens_at(features, pool).float()
    centres = cluster_centres(own, clusters)
    cluster = _nearest_centre(own, centres)
    stay = torch.cat([kept, pool.gather(1, centres)], 1)
    stay, order = stay.sort(1)
    slot = order.argsort(1)  # of kept tokens, then of clusters
    number = kept.shape[1]
    owner = torch.full((images, tokens), stay.shape[1], device=features.device)
    owner = owner.scatter(1, kept, slot[:, :number]).scatter(1, pool, slot[:, number:].gather(1, cluster))
    members = torch.zeros(images, clusters, dtype=torch.float32, device=features.device)
    members = members.scatter_add(1, cluster, torch.ones_like(cluster, dtype=torch.float32))
    share = torch.ones(images, tokens, dtype=torch.float32, device=features.device)
    return Selection(stay, owner, share.scatter(1, pool, 1 / members.gather(1, cluster)))


def cluster_centres(features: Tensor, clusters: int) -> Tensor:
    """Sorted indices of the density peaks ``[images, clusters]``.

    Density is exp(−mean squared distance to the nearest neighbours), distances divided by √C; a peak has a high
    product of density and distance to the nearest denser token. The densest token counts as farthest of all.

    Args:
        features: ``[images, n, C]``, float32.
        clusters: how many, at most n.
    """
    images, tokens, width = features.shape
    rows = max(1, CHUNK // (images * tokens))
    neighbours = min(NEIGHBOURS, tokens)
    near, farthest = [], []
    for part in features.split(rows, 1):
        distance = torch.cdist(part, features) / width**0.5
        near.append(distance.topk(neighbours, largest=False).values.square().mean(-1))
        farthest.append(distance.amax(-1))
    density = (-torch.cat(near, 1)).exp()
    rank = ranked(density).argsort(1)  # ties go to the earlier token
    apart = []
    for first, part in zip(range(0, tokens, rows), features.split(rows, 1), strict=True):
        distance = torch.cdist(part, features) / width**0.5
        denser = rank.unsqueeze(1) < rank[:, first : first + part.shape[1]].unsqueeze(-1)
        apart.append(distance.masked_fill(~denser, torch.inf).amin(-1))
    distances = torch.minimum(torch.cat(apart, 1), torch.cat(farthest, 1))
    return highest(density * distances, clusters)


def _nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """The cluster of every token ``[images, n]``; a centre is in its own."""
    own = tokens_at(features, centres)
    rows = max(1, CHUNK // centres.numel())
    cluster = torch.cat([torch.cdist(part, own).argmin(-1) for part in features.split(rows, 1)], 1)
    return cluster.scatter(1, centres, torch.arange(centres.shape[1], device=centres.device).expand_as(centres))
