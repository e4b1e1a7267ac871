"""VisPruner (ICCV 2025, arXiv 2412.01818): what the class token looks at, and of the rest what is least repeated."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.evidence import GlobalAttention, Request, VisionFeatures
from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import ranked

CHUNK = 1 << 24  # similarities formed at once
AT_ONCE = 8  # duplicates removed in one round


class VisPruner(Method):
    """Keep a share of the tokens by attention, and the others by removal of duplicates.

    The tokens that attention does not keep form a list, highest attention first. Again and again, the tokens in its
    even places are compared with those in its odd places, and the up to eight whose features are most like one of the
    latter leave it, until it is as long as it should be. Features are those that feed the projector.

    Rounds follow each other by nature: one for eight removed tokens, none of which waits for the device. A tower
    without a class token is asked what each token receives. The paper takes one step, before the language model. A
    list of odd length, which the released code cannot halve, has one even place more than odd ones here.

    Args:
        important_share: r, the share of the kept tokens that attention chooses, rounded down.
        vision_layer: vision layer whose attention and output are read; −1 feeds the projector.
    """

    name: Literal["vispruner"] = "vispruner"
    important_share: Annotated[float, Field(ge=0, le=1), SearchRange(0, 1, guesses=(0.5,))] = 0.5
    vision_layer: Annotated[int, Field(le=-1)] = -1

    @property
    def evidence(self) -> Sequence[Request]:
        return GlobalAttention(self.vision_layer), VisionFeatures(self.vision_layer)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        attention, features = (tokens.evidence(request) for request in self.evidence)
        order, important = ranked(attention), int(count * self.important_share)
        varied = most_varied(order[:, important:], features, count - important)
        return torch.cat([order[:, :important], varied], 1).sort(1).values


def most_varied(order: Tensor, features: Tensor, count: int) -> Tensor:
    """What removal of duplicates leaves of a list of tokens ``[images, count]``, in the list's order.

    Args:
        order: indices of the tokens, the most important first ``[images, listed]``.
        features: of all tokens ``[images, n, C]``.
        count: how many to leave.
    """
    if count == 0:
        return order[:, :0]
    left = normalize(features.float(), dim=-1)
    left = tokens_at(left, order)
    while (surplus := order.shape[1] - count) > 0:
        even = (order.shape[1] + 1) // 2
        likeness = _highest_cosines(left[:, ::2], left[:, 1::2])
        unlike = likeness.argsort(dim=1, stable=True)[:, : even - min(AT_ONCE, surplus, even)]
        odd = torch.arange(1, order.shape[1], 2, device=order.device).expand(len(order), -1)
        places = torch.cat([odd, 2 * unlike], 1).sort(1).values
        order, left = order.gather(1, places), tokens_at(left, places)
    return order


def _highest_cosines(one: Tensor, other: Tensor) -> Tensor:
    """The highest cosine of each of some unit vectors with any of some others ``[images, one]``."""
    rows = max(1, CHUNK // other[..., 0].numel())
    return torch.cat([(part @ other.transpose(1, 2)).amax(-1) for part in one.split(rows, 1)], 1)
