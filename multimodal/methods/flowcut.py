"""FlowCut (NeurIPS 2025, arXiv 2505.19536): patches leave the tower every second layer, by a running score of flow."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from multimodal.evidence import LanguageVectors, Request, TowerScore
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.tower import TowerLayer, TowerRule

QUERY, KEYS = LanguageVectors("queries", "last"), LanguageVectors("keys")
LAST_VALUE, VALUES = LanguageVectors("values", "last"), LanguageVectors("values")


class FlowCut(Method):
    """Score of a patch = (attention share + semantic share) · density, halved and added up from layer to layer.

    Attention is the class token's, semantic similarity the softmax of its value's products with the patches' values;
    in a tower without a class token the mean query and value stand for it. Density is the length, in L1, of the mean
    value over heads. The step before the language model keeps what is left; later steps take the same score in the
    layer before them, with the last prompt token in the class token's place.

    Every second layer, (left − target) / √(layers to come) patches leave, times the pace; behind the layer that feeds
    the projector, all above the target. The paper multiplies by 1 − (entropy / log n)², which makes counts depend on
    data and waits for the device at every layer: the pace, which can be searched, stands for it.

    Args:
        pace: factor on how many patches leave at once.
        surplus: target of the tower, in multiples of what the first step keeps: 1 is the paper's for LLaVA-1.5, 2 for
            LLaVA-NeXT, whose second cut is in the language model.
    """

    name: Literal["flowcut"] = "flowcut"
    pace: Annotated[float, Field(gt=0, le=1), SearchRange(0.1, 1, guesses=(0.5,))] = 0.5
    surplus: Annotated[float, Field(ge=1), SearchRange(1, 3, guesses=(1,))] = 1.0

    @property
    def tower(self) -> TowerRule:
        return FlowCutTower(self.pace, self.surplus)

    @property
    def evidence(self) -> Sequence[Request]:
        return TowerScore(), QUERY, KEYS, LAST_VALUE, VALUES

    def score(self, tokens: VisualTokens) -> Tensor:
        if tokens.layer == 0:
            return tokens.evidence(TowerScore())
        query, keys = tokens.evidence(QUERY).transpose(1, 2).float(), tokens.evidence(KEYS).transpose(1, 2).float()
        value, values = (tokens.evidence(each).transpose(1, 2).float() for each in (LAST_VALUE, VALUES))
        scaling = query.shape[-1] ** -0.5
        grouped = keys.repeat_interleave(query.shape[1] // keys.shape[1], 1)
        attention = (query @ grouped.transpose(-1, -2) * scaling).softmax(-1).mean((1, 2))
        semantic = (value @ values.transpose(-1, -2) * scaling).softmax(-1).mean((1, 2))
        return _flow(attention, semantic, values)


class FlowCutTower(TowerRule):
    """See :class:`FlowCut`."""

    def __init__(self, pace: float, surplus: float) -> None:
        self._pace, self._surplus = pace, surplus

    def leaving(self, number: int, layers: int, left: int, target: int) -> int:
        target = min(left, round(self._surplus * target))
        if number == layers - 1:
            return left - target
        return round(self._pace * (left - target) / (layers - number) ** 0.5) if number % 2 else 0

    def score(self, layer: TowerLayer) -> Tensor:
        own, skip = layer.attention, layer.class_tokens
        queries, keys, values = (part.float() for part in (own.queries, own.keys, own.values))
        query = queries[:, :, :1] if skip else queries.mean(2, keepdim=True)
        value = values[:, :, :1] if skip else values.mean(2, keepdim=True)
        keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
        attention = (query @ keys.transpose(-1, -2) * own.scaling).softmax(-1).mean((1, 2))[:, skip:]
        semantic = (value @ values.transpose(-1, -2)).softmax(-1).mean((1, 2))[:, skip:]
        found = _flow(attention, semantic, values[:, :, skip:])
        return found if layer.score is None else 0.5 * layer.score + 0.5 * found


def _flow(attention: Tensor, semantic: Tensor, values: Tensor) -> Tensor:
    """(attention / Σ attention + semantic / Σ semantic) · density.

    Args:
        attention, semantic: ``[images, n]``.
        values: ``[images, heads, n, d]``.
    """
    flow = attention / attention.sum(-1, keepdim=True) + semantic / semantic.sum(-1, keepdim=True)
    return flow * values.mean(1).abs().sum(-1)
