"""No merging: what is not kept is dropped."""

from typing import TYPE_CHECKING, Literal

from multimodal.merging.rule import MergingRule
from multimodal.selection import Selection

if TYPE_CHECKING:
    from multimodal.methods.method import Method, VisualTokens


class NoMerging(MergingRule):
    """Drop what the method does not keep, also where its own rule would merge."""

    rule: Literal["none"] = "none"
    weight: Literal[0] = 0

    def reduce(self, method: "Method", tokens: "VisualTokens", count: int) -> Selection:
        return Selection(method.select(tokens, count))
