"""DART (EMNLP 2025, arXiv 2502.11494): a few pivots, and the tokens that duplicate each of them least."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.evidence import LanguageVectors, Request, TextStates
from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.ranking import ranked

VISUAL_KEYS = LanguageVectors("keys", "visual")
TEXT_KEYS = LanguageVectors("keys", "text")


class DART(Method):
    """Pivots are the visual and the text tokens with the largest L1 norm of their keys in the layer before the step;
    visual ones are kept. From one pivot after the other, visual ones first, the tokens that are left whose hidden
    states have the lowest cosine with the pivot's are kept.

    The paper takes one step, after the second layer, with eight pivots, and finds that their choice hardly matters. The
    published code compares hidden states after the language model's last norm; here they are plain, as that norm is no
    evidence. Where it gives every pivot the same number, rounded down, here the earlier ones take one more, so that
    counts are exact. A prompt with fewer text tokens than text pivots uses its first pivot again. Keys are compared
    after rotary embedding, as in the published code, so their norms depend on positions: a padded batch chooses as its
    rows alone do where positions leave padding out, as those of ``generate()`` do.

    Args:
        visual_pivots: how many visual tokens are pivots; fewer where fewer are kept.
        text_pivots: how many text tokens are.
    """

    name: Literal["dart"] = "dart"
    visual_pivots: Annotated[int, Field(ge=1), SearchRange(1, 16, guesses=(4,))] = 4
    text_pivots: Annotated[int, Field(ge=0), SearchRange(0, 16, guesses=(4,))] = 4
    first_layer = 1

    @property
    def evidence(self) -> Sequence[Request]:
        return (VISUAL_KEYS, TEXT_KEYS, TextStates())

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        visual_keys, text_keys, text = (tokens.evidence(request) for request in self.evidence)
        visual = tokens.features
        kept = _longest(visual_keys, min(self.visual_pivots, count))
        pivots = torch.cat([_at(visual, kept), _at(text, self._text_pivots(text_keys)).to(visual.dtype)], 1)
        unit = normalize(visual.float(), dim=-1)
        alike = normalize(pivots.float(), dim=-1) @ unit.transpose(1, 2)
        share, more = divmod(count - kept.shape[1], pivots.shape[1])
        for number, cosines in enumerate(alike.unbind(1)):
            quota = share + (number < more)
            if quota:
                left = cosines.scatter(1, kept, torch.inf)
                kept = torch.cat([kept, left.argsort(dim=1, stable=True)[:, :quota]], 1)
        return kept.sort(1).values

    def _text_pivots(self, keys: Tensor) -> Tensor:
        """Index of the text pivots ``[images, text_pivots]``; rows that pad, whose keys are 0, are none."""
        number = min(self.text_pivots, keys.shape[1])
        longest = _longest(keys, number)
        if number:
            pads = _lengths(keys).gather(1, longest) == 0
            longest = torch.where(pads, longest[:, :1], longest)
        again = longest[:, :1].expand(-1, self.text_pivots - number)
        return torch.cat([longest, again], 1)


def _lengths(keys: Tensor) -> Tensor:
    """L1 norms, all heads together ``[images, n]``."""
    return keys.float().abs().sum((-2, -1))


def _longest(keys: Tensor, number: int) -> Tensor:
    """The tokens with the longest keys ``[images, number]``, the longest first."""
    return ranked(_lengths(keys))[:, :number]


def _at(values: Tensor, index: Tensor) -> Tensor:
    return tokens_at(values, index)
