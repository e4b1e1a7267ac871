"""LLaVA-PruMerge and PruMerge+ (ICCV 2025, arXiv 2403.15388): attended tokens that gather what is like them."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.evidence import GlobalAttention, Request, VisionKeys
from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import highest, marked, others, ranked
from multimodal.selection import Selection

CHUNK = 1 << 24  # similarities formed at once


class PruMerge(Method):
    """Keep the tokens that the class token attends to most, add to each what is like it, and one of all the dropped.

    Attention is softmax(q·k / √C) of all heads side by side. To a kept token the features of its 32 nearest by the
    cosine of keys are added, kept or dropped, each times its attention; these weights are not normalised, as published.
    The last of the count is the sum of all dropped tokens' features, each times its attention, and stands where the
    most attended of them stood. PruMerge+ has uniform_share = 0.75: so many of the kept lie evenly over the rest.

    Left out: the number of tokens by outliers of attention, because the count is the plan's (the paper's fixed one is
    an eighth). The released code reads the attention of CLIP's last layer, which feeds no projector, and merges before
    the projector; here it is a layer that feeds it, and the projector's output merges. Its stride for PruMerge+ runs
    over all tokens and loses what attention keeps. Where nothing is dropped, nothing merges. A tower without a class
    token, which the paper has none of, is asked what each token receives. The paper takes one step, before the language
    model.

    Args:
        uniform_share: share of the kept tokens (without the sum of the dropped) that lie evenly, rounded down.
        neighbours: how many tokens a kept one gathers.
        vision_layer: vision layer whose attention and keys are read; −1 feeds the projector.
    """

    name: Literal["prumerge"] = "prumerge"
    uniform_share: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(0, 0.75))] = 0.0
    neighbours: Annotated[int, Field(ge=0), SearchRange(0, 64, guesses=(32,))] = 32
    vision_layer: Annotated[int, Field(le=-1)] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return GlobalAttention(self.vision_layer, "joined"), VisionKeys(self.vision_layer)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        return torch.cat(self._kept_and_rest(tokens, count), 1).sort(1).values

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        attention, keys = (tokens.evidence(request) for request in self.evidence)
        own, rest = self._kept_and_rest(tokens, count)
        kept, order = torch.cat([own, rest], 1).sort(1)
        images, left = attention.shape
        if count == left:
            return Selection(kept)
        slots = order.argsort(1)  # of the kept tokens, then of the sum of the dropped
        near = nearest(keys, own, min(self.neighbours, left - 1)).flatten(1)
        everything = torch.arange(left, device=kept.device).expand(images, -1)
        to_rest = slots[:, -1:].expand(-1, left).masked_fill(marked(own, left) == 1, count)
        owner = [slots[:, :-1], slots[:, :-1].repeat_interleave(near.shape[1] // max(1, count - 1), 1), to_rest]
        share = [torch.ones_like(own, dtype=torch.float32), attention.gather(1, near).float(), attention.float()]
        return Selection(kept, torch.cat(owner, 1), torch.cat(share, 1), torch.cat([own, near, everything], 1))

    def _kept_and_rest(self, tokens: VisualTokens, count: int) -> tuple[Tensor, Tensor]:
        """Indices of the tokens that are kept ``[images, count − 1]``, and where the sum of the rest stands."""
        attention, even = tokens.evidence(self.evidence[0]), int(self.uniform_share * (count - 1))
        left = attention.shape[1]
        top = highest(attention, count - 1 - even)
        rest = others(top, left)
        places = torch.arange(even, device=rest.device) * rest.shape[1] // max(1, even)
        own = torch.cat([top, rest[:, places]], 1)
        return own, ranked(attention, 1 - marked(own, left))[:, :1]


def nearest(keys: Tensor, chosen: Tensor, number: int) -> Tensor:
    """The other tokens whose keys have the highest cosines with those of some ``[images, chosen, number]``.

    Args:
        keys: of all tokens ``[images, n, C]``.
        chosen: indices ``[images, chosen]``.
        number: below n.
    """
    unit = normalize(keys.float(), dim=-1)
    rows, found = max(1, CHUNK // unit[..., 0].numel()), []
    for part in chosen.split(rows, 1):
        cosines = tokens_at(unit, part) @ unit.transpose(1, 2)
        found.append(cosines.scatter(2, part.unsqueeze(-1), -torch.inf).topk(number, dim=-1).indices)
    return torch.cat(found, 1)
