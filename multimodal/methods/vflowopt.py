"""VFlowOpt (ICCV 2025, arXiv 2508.05211): a map of context relevance and entropy, and recycling of what is pruned."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from multimodal.evidence import ContextRelevance, PatchEntropy, Request
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.recycling import recycle_tokens
from multimodal.selection import Selection


class VFlowOpt(Method):
    """Map = context relevance + entropy_weight · softmax(entropy over the grid); recycling before the language model.

    Guesses are what searches chose on a small LLaVA with a DINOv2 tower.

    Args:
        query_threshold: t, in multiples of the mean received attention; tokens above it form the query set.
        entropy_weight: α; negative favours even patches.
        recycling_cell: side m of a recycling cell, in patches; None switches recycling off. Where it makes more cells
            than tokens to keep, the smallest larger one that does not is used (:func:`multimodal.recycling.cells_of`).
        recycling_weight: w; a recycled token that stands for n tokens gets w · log n added to its attention logit in
            every later layer and decoding step (not in the paper, whose value is 0). Needs an additive mask.
        recycling_count: ``exact`` or ``released`` (see :func:`multimodal.recycling.recycle`).
        vision_layer: vision layer whose attention is read; −1 feeds the projector.
    """

    name: Literal["vflowopt"] = "vflowopt"
    query_threshold: Annotated[float, Field(ge=0), SearchRange(0.05, 50, log=True, guesses=(1, 0.05))] = 30.0
    entropy_weight: Annotated[float, Field(ge=-10, le=10), SearchRange(-1, 1, guesses=(-0.5,))] = 0.0
    recycling_cell: Annotated[float | None, Field(ge=1), SearchRange(1, 24, log=True, guesses=(6,))] = 12.0
    recycling_weight: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(1,))] = 0.0
    recycling_count: Literal["exact", "released"] = "exact"
    vision_layer: Annotated[int, Field(le=-1), SearchRange(-3, -1, guesses=(-1,))] = -1
    weight_parameter = "recycling_weight"

    @property
    def evidence(self) -> Sequence[Request]:
        relevance = ContextRelevance(self.vision_layer, self.query_threshold)
        return (relevance, PatchEntropy(softmax=True)) if self.entropy_weight else (relevance,)

    @property
    def merged_weight(self) -> float:
        return self.recycling_weight if self.recycling_cell is not None else 0.0

    @property
    def exact(self) -> bool:
        return self.recycling_cell is None or self.recycling_count == "exact"

    def score(self, tokens: VisualTokens) -> Tensor:
        relevance, *entropy = (tokens.evidence(request) for request in self.evidence)
        return relevance + self.entropy_weight * entropy[0] if entropy else relevance

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        if tokens.layer > 0 or self.recycling_cell is None:
            return super().reduce(tokens, count)
        return recycle_tokens(
            self.score(tokens), tokens.index, tokens.layout.grids, count, self.recycling_cell, self.recycling_count
        )
