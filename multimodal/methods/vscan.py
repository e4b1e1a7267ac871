"""VScan (TMLR 2026, arXiv 2505.22654): a scan by windows and one of the whole, merging, and a cut half way down."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from multimodal.constants import constant, integers
from multimodal.evidence import GlobalAttention, LanguageAttention, Request
from multimodal.layout import Layout
from multimodal.merging import merge_into_nearest
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, marked, rank_within
from multimodal.selection import Selection

LAST_ROW = LanguageAttention(rows="last", layer="next")


class VScan(Method):
    """Before the language model, half of the tokens by local scan, half by global scan; inside, what it reads last.

    The local scan gives every window of every grid the same number of tokens, those that a shallow vision layer's
    class token attends to most; the global scan adds those of the deep layer that were not chosen (towers without a
    class token: what each token receives). All others are averaged into the kept token most like them. Steps inside the
    language model keep what the last prompt token attends to most in the layer they come before, and merge nothing.

    Counts are exact for every grid: with L = K // 2 local tokens of W windows, each window gives its best token, then
    each its second best, and so on, in the windows' order, until L are taken. So each has L // W, the first L % W one
    more, and a window that has no more leaves its turn to the next. The paper asks for K to divide by the windows and
    for 24×24 patches. It takes two steps: before the language model, and half way down.

    Args:
        window: side of a window, in tokens; those at the right and lower ends of a grid may be smaller.
        local_depth: where the shallow layer is, as a share of the tower's depth; the paper's layer 5 of CLIP's 24, the
            first of Qwen2.5-VL's that attend to a whole view.
        vision_layer: the deep layer; −1 feeds the projector.
    """

    name: Literal["vscan"] = "vscan"
    window: Annotated[int, Field(ge=1), SearchRange(2, 12, guesses=(6,))] = 6
    local_depth: Annotated[float, Field(gt=0, lt=1)] = 0.22
    vision_layer: Annotated[int, Field(le=-1), SearchRange(-3, -1, guesses=(-1,))] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return GlobalAttention(self.local_depth), GlobalAttention(self.vision_layer), LAST_ROW

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        if tokens.layer > 0:
            return highest(tokens.evidence(LAST_ROW), count)
        shallow, deep, _ = self.evidence
        windows = sum(_windows_in(tokens.layout, self.window))
        window = constant(window_numbers, tokens.index.device, tokens.layout, self.window)[tokens.index]
        turn = rank_within(tokens.evidence(shallow), window, windows) * windows + window
        local = highest(-turn, count // 2)
        return highest(tokens.evidence(deep), count, first=marked(local, tokens.index.shape[1]))

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        kept = self.select(tokens, count)
        return Selection(kept) if tokens.layer > 0 else merge_into_nearest(kept, tokens.features)


def window_numbers(layout: Layout, side: int) -> Tensor:
    """The number of each patch token's window ``[patch tokens]``, on the CPU.

    Args:
        layout: of an image.
        side: of a window, in tokens.
    """
    grid, row, column = layout.cells.unbind(1)
    across = [-(-columns // side) for _, columns in layout.grids]
    first = [0, *accumulate(_windows_in(layout, side))]
    return integers(*first)[grid] + row // side * integers(*across)[grid] + column // side


def _windows_in(layout: Layout, side: int) -> list[int]:
    """How many windows each grid has."""
    return [-(-rows // side) * -(-columns // side) for rows, columns in layout.grids]
