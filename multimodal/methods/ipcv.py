"""IPCV (arXiv 2512.18747): in the tower, patches whose state changes little leave early, and are rebuilt behind it."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from multimodal.evidence import Request, TowerScore
from multimodal.gathering import tokens_at
from multimodal.methods.method import Method, VisualTokens
from multimodal.ranges import SearchRange
from multimodal.tower import TowerLayer, TowerRule

NEIGHBOURS = 10


class IPCV(Method):
    """Behind one layer of the tower the patches stay whose hidden state that layer changed most.

    Each of the others keeps its state of that moment, and behind the tower is given what its ten nearest patches that
    stayed, by Euclidean distance then, have changed since, on average. The steps of the language model rank by the
    same change. The paper's layers of attention stabilisation, in which those that left are still attended to in
    their rebuilt state, are left out: they cost what was saved.

    Args:
        depth: where the patches leave, as a share of the tower's depth.
        keep: share of the patches that stay, but no fewer than the first step keeps.
    """

    name: Literal["ipcv"] = "ipcv"
    depth: Annotated[float, Field(gt=0, lt=1), SearchRange(0.05, 0.8, guesses=(0.125,))] = 0.125
    keep: Annotated[float, Field(gt=0, le=1), SearchRange(0.2, 1, guesses=(0.35,))] = 0.35

    @property
    def tower(self) -> TowerRule:
        return IPCVTower(self.depth, self.keep)

    @property
    def evidence(self) -> Sequence[Request]:
        return (TowerScore(),)

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.evidence(TowerScore())


class IPCVTower(TowerRule):
    """See :class:`IPCV`."""

    def __init__(self, depth: float, keep: float) -> None:
        self._depth, self._keep = depth, keep

    def _layer(self, layers: int) -> int:
        return min(round(self._depth * layers), layers - 1)

    def leaving(self, number: int, layers: int, left: int, target: int) -> int:
        return left - max(min(target, left), round(self._keep * left), 1) if number == self._layer(layers) else 0

    def score(self, layer: TowerLayer) -> Tensor:
        if layer.score is not None and layer.number > self._layer(layer.layers):
            return layer.score
        changed = (layer.after - layer.before)[:, layer.class_tokens :]
        return changed.float().norm(dim=-1)

    def restored(self, states: Tensor, frozen: Tensor, stays: Tensor) -> Tensor:
        count = min(NEIGHBOURS, stays.shape[1])
        distance = torch.cdist(frozen.float(), frozen.float()).masked_fill(~stays.unsqueeze(1), torch.inf)
        near = distance.topk(count, largest=False)
        weight = near.values.isfinite().float()  # fewer than ten may have stayed
        weight = (weight / weight.sum(-1, keepdim=True)).unsqueeze(-2)
        change = (states - frozen).float()
        mean = (weight @ tokens_at(change, near.indices.flatten(1)).unflatten(1, near.indices.shape[1:])).squeeze(-2)
        return states.where(stays.unsqueeze(-1), states + mean.to(states.dtype))
