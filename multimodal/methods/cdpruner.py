"""CDPruner (NeurIPS 2025, arXiv 2506.10967): a determinantal point process, conditioned on relevance to the text."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from multimodal.evidence import Request, TextStates
from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange

RANK = 1e-5  # of a token's squared length, what must be left outside the span of those chosen
EQUAL = 1e-6  # cosines that differ by no more are noise


class CDPruner(Method):
    """The greedy most probable subset of a determinantal point process with the kernel diag(r) · S · diag(r): S is the
    cosine of tokens' features, r their relevance, the mean cosine with the text tokens, min–max normalised.

    As in the paper, token i adds r_i² · u_i to the determinant, u_i being what of its unit vector lies outside the span
    of those chosen, which an incremental Cholesky factorisation of S keeps. Once nothing is added (by duplicates, or by
    more tokens than dimensions), the most relevant ones follow, where the published code would divide by zero.

    The paper asks CLIP's text tower, and turns the sign of its similarities round, because those of CLIP's patches are
    inverted. Here relevance is told by the language model's own embeddings of the prompt's text, of whatever tower, for
    which nothing of the kind is known: the more alike, the more relevant. The paper takes one step, before the language
    model; in later steps hidden states are compared. Memory is O(count · n) an image, and nothing waits for the device.

    Args:
        relevance: θ in [0, 1): r → exp(θ / (2 (1 − θ)) · r), 0 for diversity alone; None, as published: r as it is.
    """

    name: Literal["cdpruner"] = "cdpruner"
    relevance: Annotated[float | None, Field(ge=0, lt=1), SearchRange(0, 0.95, guesses=(0.5,))] = None

    @property
    def evidence(self) -> Sequence[Request]:
        return (TextStates(),)

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        unit = normalize(tokens.features.float(), dim=-1)
        relevant = _relevance(unit, tokens.evidence(TextStates()).float())
        if self.relevance is not None:
            relevant = (self.relevance / (2 - 2 * self.relevance) * (relevant - 1)).exp()  # the same up to a factor
        images, left = relevant.shape
        factor = torch.zeros(images, count, left, dtype=torch.float32, device=unit.device)
        outside = torch.ones_like(relevant)  # u
        chosen: list[Tensor] = []
        taken = torch.zeros_like(relevant, dtype=torch.bool)
        for number in range(count):
            adds = (outside > RANK) & (relevant > 0)
            gain = torch.where(adds, relevant.square() * outside, relevant - 2)
            best = gain.masked_fill(taken, -torch.inf).argmax(1, keepdim=True)
            chosen.append(best)
            taken = taken.scatter(1, best, True)
            if number + 1 == count:
                break
            own = tokens_at(unit, best)
            known = factor[:, :number]
            row = (own @ unit.transpose(1, 2)).squeeze(1)
            before = known.gather(2, best.unsqueeze(1).expand(-1, number, -1))
            row = row - (before.transpose(1, 2) @ known).squeeze(1)
            length = outside.gather(1, best)
            row = torch.where(adds.gather(1, best), row / length.clamp(min=RANK).sqrt(), 0)
            factor[:, number] = row
            outside = outside - row.square()
        return torch.cat(chosen, 1).sort(1).values


def _relevance(unit: Tensor, text: Tensor) -> Tensor:
    """Mean cosine with the text, min–max normalised over the tokens of an image; 1 where they are all alike.

    Args:
        unit: vectors of length 1 ``[images, n, C]``.
        text: ``[images, text tokens, C]``; rows of zeros change nothing.
    """
    direction = normalize(normalize(text, dim=-1).sum(1), dim=-1)  # its length changes nothing
    alike = (unit @ direction.unsqueeze(-1)).squeeze(-1)
    low, high = alike.amin(1, keepdim=True), alike.amax(1, keepdim=True)
    return torch.where(high - low > EQUAL, (alike - low) / (high - low).clamp(min=EQUAL), 1)
