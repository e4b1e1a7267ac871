"""Requests that the vision tower answers: attention by statistic and layer, keys, values, features, patch entropy."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from multimodal.errors import FlowpruneError
from multimodal.evidence.request import Request, Stored, VisionRequest
from multimodal.evidence.tower import LayerAttention, TowerViews
from multimodal.importance import (
    attention_received,
    context_relevance,
    grey_entropy,
    ranked_relevance,
    relevance_from_table,
    weighted_attention,
)
from multimodal.options import Sinks
from multimodal.sinks import SINK, column_means, sink_share

ANSWER = "answer"


class _Plain(VisionRequest):
    """A request whose answer is what is stored."""

    def collect(self, seen: TowerViews) -> Stored:
        return {ANSWER: self.of(seen)}

    @abstractmethod
    def of(self, seen: TowerViews) -> Tensor:
        """The answer by patch, from the tower."""

    def answer(self, stored: Stored, collected: VisionRequest) -> Tensor:
        return stored[ANSWER]


@dataclass(frozen=True)
class _OfAttention(VisionRequest):
    """A statistic of one layer's attention.

    Args:
        layer: of the tower; −1 is the layer that feeds the projector, a number in (0, 1) a share of the depth.
    """

    layer: float

    @property
    def attention_layers(self) -> tuple[float, ...]:
        return (self.layer,)


@dataclass(frozen=True)
class Statistic(_OfAttention):
    """What patches are given by a layer's attention.

    Args:
        sinks: patches that receive more than ``SINK`` of the attention, on average: ``kept`` as they are; ``masked``:
            their answer is 0; ``calibrated``: head by head, before the statistic is taken, as ACT does.
    """

    sinks: Sinks = field(default="kept", kw_only=True)

    def _calibrated_at(self, compared: LayerAttention, class_tokens: int) -> Tensor | None:
        """Where attention is calibrated ``[views, heads, tokens]``; class tokens, which are no patch, are spared."""
        if self.sinks != "calibrated":
            return None
        found = column_means(compared.queries, compared.keys, compared.scaling) > SINK
        found[..., :class_tokens] = False
        return found

    def _masked(self, answer: Tensor, received: Callable[[], Tensor]) -> Tensor:
        """The answer ``[views, patches]``, of which ``received`` is what the patches are looked at."""
        return answer.masked_fill(received() > SINK, 0) if self.sinks == "masked" else answer


@dataclass(frozen=True)
class ContextRelevance(Statistic):
    """:func:`multimodal.importance.context_relevance` of each patch; its threshold may be a range, for a search.

    Args:
        layer: of the tower.
        threshold: t, in multiples of the mean received attention.
        highest: with it, every threshold from ``threshold`` to here can be answered.
    """

    threshold: float
    highest: float | None = None

    def _alike(self, other: Request) -> bool:
        return isinstance(other, ContextRelevance) and (other.layer, other.sinks) == (self.layer, self.sinks)

    def covers(self, other: Request) -> bool:
        if not isinstance(other, ContextRelevance) or not self._alike(other) or self.highest is None:
            return self == other
        highest = other.threshold if other.highest is None else other.highest
        return self.threshold <= other.threshold and highest <= self.highest

    def joined(self, other: VisionRequest) -> VisionRequest | None:
        if not isinstance(other, ContextRelevance) or not self._alike(other) or self == other:
            return super().joined(other)
        ends = [end for each in (self, other) for end in (each.threshold, each.highest) if end is not None]
        return ContextRelevance(self.layer, min(ends), max(ends), sinks=self.sinks)

    def collect(self, seen: TowerViews) -> Stored:
        own, skip = seen.attention[self.layer], seen.class_tokens
        sinks = self._calibrated_at(own, skip)
        if self.highest is None:
            found = context_relevance(own.queries, own.keys, self.threshold, own.scaling, sinks)[:, skip:]
            return {ANSWER: self._masked(found, lambda: _received(own, skip))}
        received = attention_received(own.queries, own.keys, own.scaling)
        table = ranked_relevance(own.queries, own.keys, own.scaling, received, self.threshold, sinks)
        return {"table": table[..., skip:], "received": received}

    def answer(self, stored: Stored, collected: VisionRequest) -> Tensor:
        if ANSWER in stored:
            return stored[ANSWER]
        assert isinstance(collected, ContextRelevance)
        table, received = stored["table"], stored["received"]
        found = relevance_from_table(table, received, collected.threshold, self.threshold)
        return self._masked(found, lambda: received[:, received.shape[1] - table.shape[-1] :])


@dataclass(frozen=True)
class ReceivedAttention(_Plain, Statistic):
    """What each patch receives: the column mean of the head-mean attention."""

    def of(self, seen: TowerViews) -> Tensor:
        own, skip = seen.attention[self.layer], seen.class_tokens
        found = _received(own, skip, self._calibrated_at(own, skip))
        return self._masked(found, lambda: found)


@dataclass(frozen=True)
class ClassAttention(_Plain, Statistic):
    """What the class token looks at: its row of the head-mean attention."""

    def of(self, seen: TowerViews) -> Tensor:
        if not seen.class_tokens:
            raise FlowpruneError("This vision tower has no class token: choose a method that needs none.")
        own, skip = seen.attention[self.layer], seen.class_tokens
        found = _class_row(own, skip, self._calibrated_at(own, skip))
        return self._masked(found, lambda: _received(own, skip))


@dataclass(frozen=True)
class GlobalAttention(_Plain, Statistic):
    """What the tower as a whole looks at: :class:`ClassAttention`, or, in a tower without a class token,
    :class:`ReceivedAttention`, as VisionZip (arXiv 2412.04467, §3.2) proposes.

    Args:
        layer: of the tower.
        heads: ``mean`` over heads; or ``joined``, softmax(q·k / √C) of all heads' queries and keys side by side, as
            LLaVA-PruMerge (arXiv 2403.15388) computes it.
    """

    heads: Literal["mean", "joined"] = "mean"

    def of(self, seen: TowerViews) -> Tensor:
        own, skip = seen.attention[self.layer], seen.class_tokens
        if self.heads == "joined":
            queries, keys = (part.transpose(-3, -2).flatten(-2).unsqueeze(-3) for part in (own.queries, own.keys))
            own = LayerAttention(queries, keys, own.values, queries.shape[-1] ** -0.5)
        sinks = self._calibrated_at(own, skip)
        found = _class_row(own, skip, sinks) if skip else _received(own, skip, sinks)
        return self._masked(found, lambda: _received(own, skip))


@dataclass(frozen=True)
class AttentionSinks(_Plain, _OfAttention):
    """Share of the heads in which a patch is an attention sink (:func:`multimodal.sinks.sink_share`), for pictures."""

    def of(self, seen: TowerViews) -> Tensor:
        own = seen.attention[self.layer]
        return sink_share(column_means(own.queries, own.keys, own.scaling), SINK)[:, seen.class_tokens :]


@dataclass(frozen=True)
class VisionKeys(_Plain, _OfAttention):
    """Keys of each patch.

    Args:
        layer: of the tower.
        heads: ``joined``: all heads side by side ``C = heads · d``; or their ``mean`` ``C = d``, in float32.
    """

    heads: Literal["joined", "mean"] = "joined"

    def of(self, seen: TowerViews) -> Tensor:
        if self.heads == "mean":
            return seen.attention[self.layer].keys[:, :, seen.class_tokens :].float().mean(1)
        return _side_by_side(seen.attention[self.layer], "keys", seen.class_tokens)


@dataclass(frozen=True)
class VisionValues(_Plain, _OfAttention):
    """Values of each patch, all heads side by side ``C = heads · d``."""

    def of(self, seen: TowerViews) -> Tensor:
        return _side_by_side(seen.attention[self.layer], "values", seen.class_tokens)


@dataclass(frozen=True)
class VisionFeatures(_Plain):
    """Output of one layer at each patch, before the projector.

    Args:
        layer: of the tower; −1 is the layer that feeds the projector.
    """

    layer: float

    @property
    def feature_layers(self) -> tuple[float, ...]:
        return (self.layer,)

    def of(self, seen: TowerViews) -> Tensor:
        return seen.features[self.layer][:, seen.class_tokens :]


@dataclass(frozen=True)
class PatchEntropy(_Plain):
    """:func:`multimodal.importance.patch_entropy` of each patch, in bits.

    Args:
        softmax: its softmax over the patches of a view instead.
    """

    softmax: bool = False

    @property
    def reads_pixels(self) -> bool:
        return True

    def covers(self, other: Request) -> bool:
        return isinstance(other, PatchEntropy) and (not self.softmax or other.softmax)

    def of(self, seen: TowerViews) -> Tensor:
        assert seen.pixels is not None
        return grey_entropy(seen.pixels)

    def answer(self, stored: Stored, collected: VisionRequest) -> Tensor:
        return stored[ANSWER].softmax(-1) if self.softmax else stored[ANSWER]


@dataclass(frozen=True)
class TowerScore(_Plain):
    """What a method's own :class:`~multimodal.tower.TowerRule` says of each patch: 0 where it has left the tower."""

    def of(self, seen: TowerViews) -> Tensor:
        if seen.score is None:
            raise FlowpruneError("TowerScore needs a method that prunes inside the tower: give it a tower rule.")
        return seen.score[:, seen.class_tokens :]


def _received(compared: LayerAttention, class_tokens: int, sinks: Tensor | None = None) -> Tensor:
    return attention_received(compared.queries, compared.keys, compared.scaling, sinks)[:, class_tokens:]


def _class_row(compared: LayerAttention, class_tokens: int, sinks: Tensor | None) -> Tensor:
    """The class token's row, or, of class and register tokens, the first one's."""
    ones, query = compared.queries.new_ones(len(compared.queries), 1), compared.queries[..., :1, :]
    return weighted_attention(query, compared.keys, compared.scaling, ones, sinks)[:, class_tokens:]


def _side_by_side(attention: LayerAttention, name: str, class_tokens: int) -> Tensor:
    own: Tensor = getattr(attention, name)
    return own[:, :, class_tokens:].transpose(1, 2).flatten(2)
