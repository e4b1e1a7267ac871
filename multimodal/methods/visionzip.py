"""VisionZip (CVPR 2025, arXiv 2412.04467): dominant tokens, and contextual ones that gather all others."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from multimodal.evidence import GlobalAttention, Request, VisionKeys
from multimodal.merging import most_similar
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, others
from multimodal.selection import Selection


class VisionZip(Method):
    """Keep dominant tokens by attention; every s-th of the rest is contextual, and gathers those most like it.

    Dominant are the tokens that the class token attends to most, or, in a tower that has none, that receive most.
    What is neither dominant nor contextual goes to the contextual token whose head-mean key has the highest cosine
    with its own, and that token becomes itself plus the *mean* of what it was given. This is a sum, as published: the
    shares of a contextual token that was given any add up to 2.

    The paper merges before the projector, here the projector's output merges; it counts the class token among the
    dominant ones, which is no visual token here; it puts contextual tokens last, here all keep their order. The paper
    takes one step, before the language model.

    Args:
        contextual_share: share of the tokens left that are contextual, rounded down; the paper's 10 of 64 by default.
        vision_layer: vision layer whose attention and keys are read; −1 feeds the projector.
    """

    name: Literal["visionzip"] = "visionzip"
    contextual_share: Annotated[float, Field(ge=0, lt=1), SearchRange(0, 0.5, guesses=(0.16,))] = 0.16
    vision_layer: Annotated[int, Field(le=-1)] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return GlobalAttention(self.vision_layer), VisionKeys(self.vision_layer, "mean")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return torch.cat(self._dominant_and_contextual(tokens, count), 1).sort(1).values

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        dominant, contextual = self._dominant_and_contextual(tokens, count)
        kept, order = torch.cat([dominant, contextual], 1).sort(1)
        if count == tokens.index.shape[1] or contextual.shape[1] == 0:
            return Selection(kept)
        slots = order.argsort(1)  # of dominant tokens, then of contextual ones
        nearest = most_similar(tokens.evidence(self.evidence[1]), contextual)
        owner = slots[:, dominant.shape[1] :].gather(1, nearest)
        given = torch.ones_like(owner, dtype=torch.float32).scatter(1, kept, 0)
        members = torch.zeros_like(kept, dtype=torch.float32).scatter_add(1, owner, given)
        share = (1 / members.clamp(min=1)).gather(1, owner).scatter(1, kept, 1)
        numbers = torch.arange(count, device=kept.device).expand_as(kept)
        return Selection(kept, owner.scatter(1, kept, numbers), share)

    def _dominant_and_contextual(self, tokens: VisualTokens, count: int) -> tuple[Tensor, Tensor]:
        """Sorted indices of both; contextual ones lie evenly over the list of what is not dominant."""
        left, contextual = tokens.index.shape[1], int(self.contextual_share * count)
        dominant = highest(tokens.evidence(self.evidence[0]), count - contextual)
        if contextual == 0:
            return dominant, dominant[:, :0]
        rest = others(dominant, left)
        return dominant, rest[:, :: rest.shape[1] // contextual][:, :contextual]
