"""Prunes patches while the vision tower encodes, by a method's :class:`~multimodal.tower.TowerRule`."""

import math
import threading
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.evidence.tower import LayerAttention
from multimodal.families import Modules
from multimodal.gathering import tokens_at, widened
from multimodal.ranking import highest
from multimodal.runtime.attention import observed_attention
from multimodal.runtime.hooks import MethodHook
from multimodal.tower import TowerLayer, TowerRule


class _Encoding(threading.local):
    """One encoding of this thread."""

    def __init__(self) -> None:
        self.index: Tensor | None = None  # of the tokens that are there, among all ``[views, n]``; None: all are
        self.states: Tensor | None = None  # of all tokens, those that left as they left ``[views, tokens, C]``
        self.frozen: Tensor | None = None  # of all tokens when the first ones left
        self.score: Tensor | None = None
        self.attention: LayerAttention | None = None
        self.scores: list[Tensor] = []  # of each call of the tower ``[views, tokens, 1]``, 0 where a patch left


class TowerPruning:
    """Takes patches out of a tower whose layers see a batch of views, and puts them back behind it.

    Args:
        modules: of the model.
        rule: which patches leave.
        keep_ratio: share of a view's patches that should be left in the end.
        known: equal for rules that do the same.
    """

    def __init__(self, modules: Modules, rule: TowerRule, keep_ratio: float, known: Hashable) -> None:
        self._modules, self._rule, self._keep_ratio = modules, rule, keep_ratio
        self.known = known, keep_ratio
        self._layers = len(modules.geometry.whole_view_layers)
        self._encoding = _Encoding()

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        layers = [self._modules.vision_layer(number - self._layers) for number in range(self._layers)]
        for number, layer in enumerate(layers):
            stack.callback(MethodHook(layer, "forward", partial(self._run, number)).remove)
        stack.enter_context(observed_attention(dict.fromkeys(layers, self._see_attention)))

    def scores(self) -> list[Tensor]:
        """What the rule says of all patches encoded since it was last asked: ``[views, tokens, 1]`` a call."""
        scores, self._encoding.scores = self._encoding.scores, []
        return scores

    def _see_attention(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None
    ) -> None:
        self._encoding.attention = LayerAttention(queries, keys, values, scaling)

    def _run(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        own = self._encoding
        if number == 0:
            own.index = own.states = own.frozen = own.score = None
        before = args[0] if args else kwargs["hidden_states"]
        output = forward(*args, **kwargs)
        after = output[0] if isinstance(output, tuple) else output
        with torch.no_grad():
            after = self._step(number, before, after)
        own.attention = None
        return (after, *output[1:]) if isinstance(output, tuple) else after

    def _step(self, number: int, before: Tensor, after: Tensor) -> Tensor:
        own, patches = self._encoding, self._modules.geometry.view_patches
        tokens = after.shape[1] if own.states is None else own.states.shape[1]
        extra, target = tokens - patches, max(1, math.floor(self._keep_ratio * patches + 0.5))
        assert own.attention is not None
        layer = TowerLayer(number, self._layers, patches, target, extra, before, after, own.attention, own.score)
        own.score = self._rule.score(layer)
        leaving = self._rule.leaving(number, self._layers, layer.left, target)
        if leaving > 0:
            after = self._take_out(after, own.score, leaving, extra)
        return self._put_back(after, extra) if number == self._layers - 1 else after

    def _take_out(self, after: Tensor, score: Tensor, leaving: int, extra: int) -> Tensor:
        own = self._encoding
        if own.index is None or own.states is None:
            own.index = torch.arange(after.shape[1], device=after.device).expand(len(after), -1)
            own.states = own.frozen = after
        else:
            own.states = own.states.scatter(1, widened(own.index, after), after)
        patches = highest(score, score.shape[1] - leaving)
        own.score = score.gather(1, patches)
        kept = torch.cat([torch.arange(extra, device=after.device).expand(len(after), -1), patches + extra], 1)
        own.index = own.index.gather(1, kept)
        return tokens_at(after, kept)

    def _put_back(self, after: Tensor, extra: int) -> Tensor:
        own = self._encoding
        assert own.score is not None
        score = torch.nn.functional.pad(own.score, (extra, 0))
        if own.index is None or own.states is None or own.frozen is None:
            own.scores.append(score.unsqueeze(-1))
            return after
        whole = own.states.scatter(1, widened(own.index, after), after)
        stays = torch.zeros(whole.shape[:2], dtype=torch.bool, device=whole.device).scatter(1, own.index, True)
        patches = self._rule.restored(whole[:, extra:], own.frozen[:, extra:], stays[:, extra:])
        spread = torch.zeros(whole.shape[:2], dtype=score.dtype, device=whole.device)
        own.scores.append(spread.scatter(1, own.index, score).unsqueeze(-1))
        own.index = own.states = own.frozen = own.score = None
        return torch.cat([whole[:, :extra], patches], 1) if extra else patches


def tower_pruning(modules: Modules, config: PruningConfig) -> TowerPruning | None:
    """What prunes inside the tower under a config: down to what its step before the language model keeps."""
    method, first = config.method, config.schedule[0]
    if (rule := method.tower) is None:
        return None
    return TowerPruning(modules, rule, first.keep_ratio if first.layer == 0 else 1.0, method.model_dump_json())
