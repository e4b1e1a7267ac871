"""VFlowOpt (ICCV 2025, arXiv 2508.05211): a map of context relevance and entropy, and recycling of what is pruned."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from multimodal.layout import Layout
from multimodal.methods.method import Method, Reduced, SearchRange, VisualTokens
from multimodal.observation import VisionObservation
from multimodal.recycling import recycle_places, smallest_cell


class VFlowOpt(Method):
    """Map = context relevance + entropy_weight · softmax(entropy over the grid); recycling before the language model.

    Guesses are what searches chose on a small LLaVA with a DINOv2 tower.

    Args:
        query_threshold: t, in multiples of the mean received attention; tokens above it form the query set.
        entropy_weight: α; negative favours even patches.
        recycling_cell: side m of a recycling cell, in patches; None switches recycling off.
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

    @property
    def vision_layers(self) -> tuple[int, ...]:
        return (self.vision_layer,)

    @property
    def needs_entropy(self) -> bool:
        return self.entropy_weight != 0

    @property
    def biases_attention(self) -> float:
        return self.recycling_weight if self.recycling_cell is not None else 0.0

    @property
    def exact(self) -> bool:
        return self.recycling_cell is None or self.recycling_count == "exact"

    def fitted(self, layout: Layout, count: int) -> "VFlowOpt":
        if self.recycling_cell is None or self.recycling_count == "released":
            return self
        return self.model_copy(update={"recycling_cell": max(self.recycling_cell, smallest_cell(layout.grids, count))})

    def patch_importance(self, vision: VisionObservation) -> Tensor:
        relevance = vision.layers[self.vision_layer].context_relevance(self.query_threshold)[:, vision.class_tokens :]
        if vision.entropy is None or not self.needs_entropy:
            return relevance
        return relevance + self.entropy_weight * vision.entropy.softmax(-1)

    def reduce(self, tokens: VisualTokens, count: int) -> Reduced:
        if tokens.layer > 0 or self.recycling_cell is None:
            return super().reduce(tokens, count)
        return Reduced(
            *recycle_places(
                self.score(tokens),
                tokens.layout.cells,
                count,
                self.recycling_cell,
                self.recycling_count,
            )
        )
