"""HiPrune (AAAI 2026, arXiv 2508.00553): objects of a middle vision layer, what lies around them, and registers."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from multimodal.constants import constant
from multimodal.evidence import ReceivedAttention, Request
from multimodal.layout import Layout
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, marked


class HiPrune(Method):
    """Anchors receive most attention in an object layer, buffers are their neighbours, registers the deep layer's.

    Of K tokens, round(K · α / 5) are anchors. Their four neighbours in the same grid are kept with them, and the rest
    is what receives most in the deep layer; where rounding makes more neighbours than there is room for, the deep
    layer chooses among them, too. Attention is the mean over heads and over all queries, so no class token is needed.

    Neighbours do not wrap around at the ends of rows, as those of the released code do, and each grid has its own
    width. The paper takes one step, before the language model.

    Args:
        anchor_share: α, share of the kept tokens that anchors and their neighbours make up.
        object_depth: where the object layer is, as a share of the tower's depth; the paper's 9 of CLIP's 24 layers, 16
            of Qwen2.5-VL's 32 (of whose layers only those count that attend to a whole view).
        vision_layer: the deep layer; −1 feeds the projector.
    """

    name: Literal["hiprune"] = "hiprune"
    anchor_share: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(0.1,))] = 0.1
    object_depth: Annotated[float, Field(gt=0, lt=1)] = 0.4
    vision_layer: Annotated[int, Field(le=-1), SearchRange(-3, -1, guesses=(-1,))] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return ReceivedAttention(self.object_depth), ReceivedAttention(self.vision_layer)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        objects, deep = (tokens.evidence(request) for request in self.evidence)
        anchors = highest(objects, round(count * self.anchor_share / 5))
        is_anchor = marked(anchors, tokens.index.shape[1])
        beside = constant(_neighbours, deep.device, tokens.layout)
        patches = len(beside)
        anchor_patches = pad(marked(tokens.index.gather(1, anchors), patches), (0, 1))  # none stands for a missing one
        is_buffer = anchor_patches[:, beside].amax(-1).gather(1, tokens.index)
        return highest(deep, count, first=2 * is_anchor + is_buffer * (1 - is_anchor))


def _neighbours(layout: Layout) -> Tensor:
    return layout.neighbours
