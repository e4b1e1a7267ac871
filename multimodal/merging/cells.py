"""Grid cells: VFlowOpt's recycling (:mod:`multimodal.recycling`), for any method that scores tokens."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from multimodal.merging.rule import MergingRule
from multimodal.ranges import SearchRange
from multimodal.recycling import recycle_tokens
from multimodal.selection import Selection

if TYPE_CHECKING:
    from multimodal.methods.method import Method, VisualTokens


class CellMerging(MergingRule):
    """The pruned tokens of each cell of their grid become one token, their importance-weighted mean.

    Args:
        cell: side m of a cell, in patches (:func:`multimodal.recycling.cells_of`).
    """

    needs_score = True

    rule: Literal["cells"] = "cells"
    cell: Annotated[float, Field(ge=1), SearchRange(1, 24, log=True, guesses=(6,))] = 12.0

    def reduce(self, method: "Method", tokens: "VisualTokens", count: int) -> Selection:
        return recycle_tokens(method.score(tokens), tokens.index, tokens.layout.grids, count, self.cell)
