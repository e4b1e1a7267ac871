"""PyramidDrop (CVPR 2025, arXiv 2410.17247): what the last prompt token would look at, in the layer after the step."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from multimodal.evidence import LanguageAttention, Request
from multimodal.methods.method import Method, VisualTokens

LAST_ROW = LanguageAttention(rows="last", layer="next")


class PyramidDrop(Method):
    """Keep the visual tokens that receive most of the last prompt token's attention, mean over heads, in the layer that
    the step comes before.

    The paper steps at a quarter, a half and three quarters of the depth, and keeps half of what is left at each
    (λ = 0.5); the schedule is the config's. The published code numbers the tokens anew after every step; here, as for
    all methods, inner steps keep positions. As the layer's queries and keys are made once more of what the step may
    drop, a step costs about one projection.
    """

    name: Literal["pyramiddrop"] = "pyramiddrop"
    first_layer = 1

    @property
    def evidence(self) -> Sequence[Request]:
        return (LAST_ROW,)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.evidence(LAST_ROW)
