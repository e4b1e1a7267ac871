"""SparseVLM (ICML 2025, arXiv 2410.04417): what the text that is about the image looks at; recycling by clusters."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from multimodal.evidence import LanguageAttention, Request, TextEmbeddings, VisualEmbeddings
from multimodal.gathering import tokens_at
from multimodal.merging import merge_clusters
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import ranked
from multimodal.selection import Selection

BY_HEAD = LanguageAttention(rows="text", heads="each")
MEAN = LanguageAttention(rows="text")


class SparseVLM(Method):
    """Keep the visual tokens that receive most of the text raters' attention, in the layer before the step.

    Raters are chosen from input embeddings, so they are the same at every step: for every patch token a softmax over
    text tokens of the dot products of their embeddings, the mean of it over patches; a text token above the mean rates.
    Only text that can see the image counts, as in the published code, where that is what follows it. Of the tokens that
    are not kept, those with the highest scores are recycled into cluster means (:mod:`multimodal.merging.clusters`).

    The defaults are version 1, with three differences: cluster means are part of the count, instead of added to it;
    each stands at its cluster's centre, instead of after the image; and counts are the config's, where the published
    code has a list. ``heads=0.4375, recycled=0`` is version 2, but for its division of the attention by what rotary
    embedding alone would give it: rotary angles are no evidence, and that quotient changes sign with distance.

    Args:
        heads: share of heads that count, those whose raters look most at the image; version 2: 14 of 32.
        recycled: share of the tokens not kept, the highest scores, that are recycled; 0: none.
        clusters: clusters, as a share of what is recycled, rounded down, and one more; at most half of the count.
    """

    name: Literal["sparsevlm"] = "sparsevlm"
    heads: Annotated[float, Field(gt=0, le=1), SearchRange(0.1, 1, guesses=(1, 0.4375))] = 1.0
    recycled: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(0.3,))] = 0.3
    clusters: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    first_layer = 1

    @property
    def evidence(self) -> Sequence[Request]:
        return (TextEmbeddings(), VisualEmbeddings(), MEAN if self.heads == 1 else BY_HEAD)

    def score(self, tokens: VisualTokens) -> Tensor:
        text, visual, attention = (tokens.evidence(request) for request in self.evidence)
        attention = attention.float()
        by_head = attention.unsqueeze(1) if self.heads == 1 else attention
        raters = _raters(text.float(), visual.float(), by_head.sum((1, 3)) > 0)
        seen = (by_head * raters[:, None, :, None]).sum(2) / raters.sum(1).clamp(min=1)[:, None, None]
        number = max(1, round(self.heads * seen.shape[1]))
        chosen = ranked(seen.sum(-1))[:, :number]
        return tokens_at(seen, chosen).mean(1)

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        pool, clusters = self._recycled(tokens.index.shape[1], count)
        if not clusters:
            return super().reduce(tokens, count)
        order = ranked(self.score(tokens))
        kept = order[:, : count - clusters].sort(1).values
        recycled = order[:, count - clusters :][:, :pool].sort(1).values
        return merge_clusters(kept, recycled, tokens.features, clusters)

    def _recycled(self, left: int, count: int) -> tuple[int, int]:
        """How many tokens are recycled, and into how many of ``count``: the fewest clusters that the shares allow, as
        each takes the place of one more token, and at most half of the count."""
        pool = clusters = 0
        for clusters in range(1, count // 2 + 1 if count < left else 1):
            pool = int(self.recycled * (left - count + clusters))
            if int(self.clusters * pool) < clusters <= pool:
                break
        return (pool, clusters) if pool >= clusters else (0, 0)


def _raters(text: Tensor, visual: Tensor, sees: Tensor) -> Tensor:
    """1 where a text token rates, else 0 ``[images, text tokens]``.

    Args:
        text: embeddings ``[images, text tokens, C]``.
        visual: embeddings ``[images, patch tokens, C]``.
        sees: whether a text token can see the image ``[images, text tokens]``; padding cannot.
    """
    logits = (visual @ text.transpose(1, 2)).masked_fill(~sees.unsqueeze(1), torch.finfo(torch.float32).min)
    related = logits.softmax(-1).mean(1)
    mean = (related * sees).sum(1, keepdim=True) / sees.sum(1, keepdim=True).clamp(min=1)
    rates = (related > mean) | (related == related.amax(1, keepdim=True))  # one at least
    return (rates & sees).float()
