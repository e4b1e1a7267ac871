"""HoloV (NeurIPS 2025, arXiv 2510.02912): each stretch of the image has a quota, by attention and by variety."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.evidence import GlobalAttention, Request
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, rank_within

CHUNK = 1 << 24  # similarities formed at once
TINY = 1e-30


class HoloV(Method):
    """Cut the tokens, in raster order, into chunks; each keeps by attention as many as its score is worth.

    A token's score is what the class token attends to it (in a tower that has none, what it receives) plus α times the
    variance of its cosine similarities to all tokens of its chunk, rescaled so that its mean is attention's; a chunk's
    is the mean of its tokens'. Of K tokens a chunk gets floor(share of all scores · K), the best chunks one more each
    until K are given; what a chunk has no tokens for goes to the best chunks that have, where the released code adds
    vectors of zeros. The paper takes one step, before the language model.

    Args:
        chunks: P; chunk c has the tokens i with floor(i · P / n) = c. The paper's 16 of LLaVA's 576 tokens by default;
            for Qwen it takes 1024 / 576 · N / K.
        variety_weight: α.
        vision_layer: vision layer whose attention is read; −1 feeds the projector.
    """

    name: Literal["holov"] = "holov"
    chunks: Annotated[int, Field(ge=1), SearchRange(4, 64, guesses=(16,))] = 16
    variety_weight: Annotated[float, Field(ge=0), SearchRange(0, 1, guesses=(0.09,))] = 0.09
    vision_layer: Annotated[int, Field(le=-1), SearchRange(-3, -1, guesses=(-1,))] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return (GlobalAttention(self.vision_layer),)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        attention = tokens.evidence(self.evidence[0]).float()
        left = attention.shape[1]
        chunks = min(self.chunks, left)
        variety = chunk_variances(tokens.features, chunks)
        rescaled = variety * (attention.mean(1, keepdim=True) / variety.mean(1, keepdim=True).clamp(min=TINY))
        chunk = (torch.arange(left, device=attention.device) * chunks // left).expand_as(attention)
        sizes = torch.zeros_like(attention[:, :chunks]).scatter_add(1, chunk, torch.ones_like(attention))
        total = torch.zeros_like(sizes).scatter_add(1, chunk, attention + self.variety_weight * rescaled)
        quota = quotas(total / sizes, sizes.long(), count)
        keep = rank_within(attention, chunk, chunks) < quota.gather(1, chunk)
        return highest(keep.float(), count)


def quotas(scores: Tensor, sizes: Tensor, count: int) -> Tensor:
    """How many of ``count`` tokens each chunk keeps ``[images, chunks]``.

    Args:
        scores: of the chunks, not negative ``[images, chunks]``.
        sizes: their tokens ``[images, chunks]``.
        count: at most the sum of the sizes.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    best, room = scores.gather(1, order), sizes.gather(1, order)
    given = (best / best.sum(1, keepdim=True).clamp(min=TINY) * count).long()
    given = given + (torch.arange(order.shape[1], device=order.device) < count - given.sum(1, keepdim=True))
    given = torch.minimum(given, room)
    room = room - given
    before = room.cumsum(1) - room  # what better chunks have room for
    given = given + torch.minimum((count - given.sum(1, keepdim=True) - before).clamp(min=0), room)
    return torch.zeros_like(given).scatter(1, order, given)


def chunk_variances(features: Tensor, chunks: int) -> Tensor:
    """Variance of each token's cosine similarities to the tokens of its chunk, itself included ``[images, n]``.

    Args:
        features: ``[images, n, C]``.
        chunks: at most n.
    """
    images, left = features.shape[:2]
    first = (torch.arange(chunks + 1, device=features.device) * left + chunks - 1) // chunks
    longest = -(-left // chunks)
    places = first[:-1, None] + torch.arange(longest, device=features.device)
    valid = places < first[1:, None]  # [chunks, longest]
    unit = normalize(features.float(), dim=-1)[:, places.clamp(max=left - 1)]
    sizes, found = valid.sum(1).view(chunks, 1, 1), []
    for part in unit.split(max(1, CHUNK // (images * chunks * longest)), 2):
        cosines = (part @ unit.transpose(2, 3)) * valid.unsqueeze(1)
        apart = (cosines - cosines.sum(-1, keepdim=True) / sizes) * valid.unsqueeze(1)
        found.append(apart.square().sum(-1) / (sizes.squeeze(-1) - 1).clamp(min=1))
    place = torch.arange(left, device=features.device)
    chunk = place * chunks // left
    return torch.cat(found, 2)[:, chunk, place - first[chunk]]
