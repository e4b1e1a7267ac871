"""FasterVLM (arXiv 2412.01818): what the vision tower's class token looks at."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from multimodal.evidence import GlobalAttention, Request
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange


class FasterVLM(Method):
    """Keep the tokens that the class token attends to most, mean over heads, in one vision layer.

    A tower without a class token, which the paper has none of, is asked what each token receives on average. The paper
    takes one step, before the language model. Its fixed number of 576 patches and its dropped newline tokens are left
    out: here layouts are the model's own.

    Args:
        vision_layer: vision layer whose attention is read; −1 feeds the projector.
    """

    name: Literal["fastervlm"] = "fastervlm"
    vision_layer: Annotated[int, Field(le=-1), SearchRange(-3, -1, guesses=(-1,))] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return (GlobalAttention(self.vision_layer),)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.evidence(self.evidence[0])
