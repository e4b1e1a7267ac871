"""FastV (ECCV 2024, arXiv 2403.06764): what the last prompt token looks at, in the layer before the step."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from multimodal.evidence import LanguageAttention, Request
from multimodal.methods.method import Method, VisualTokens

LAST_ROW = LanguageAttention(rows="last")


class FastV(Method):
    """Keep the visual tokens that receive most of the last prompt token's attention, mean over heads.

    The paper takes one step, before layer 2; tokens keep their positions.
    """

    name: Literal["fastv"] = "fastv"
    first_layer = 1

    @property
    def evidence(self) -> Sequence[Request]:
        return (LAST_ROW,)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.evidence(LAST_ROW)
