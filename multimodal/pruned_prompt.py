"""One prompt on its way through the language model: selection at every step, then masks and positions to decode with.

Knows tensors and methods; knows nothing of hooks. The pruner drives it from hooks, the search from cached features.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.families import Family
from multimodal.masks import Keys, attention_mask, sliding_window
from multimodal.prompt import Prompt
from multimodal.sequence import Stage, gather_positions, gather_tokens
from multimodal.step import Group, group_images, take_step


class PrunedPrompt:
    """The state of one prefill and of the decoding that follows it.

    Args:
        family: of the model.
        config: what to do.
        prompt: the images and videos.
        past: the conversation's earlier turn, whose tokens stay as they are.
    """

    def __init__(
        self, family: Family, config: PruningConfig, prompt: Prompt, past: "PrunedPrompt | None" = None
    ) -> None:
        self.prompt = prompt
        self.stages: dict[int, Stage] = {}  # by the layer they begin at
        self._past = past
        self._family = family
        self._config = config
        self._text = family.text_model.config
        self._steps = {step.layer: number for number, step in enumerate(config.schedule)}
        self._groups: list[Group] = []
        self._first_length = 0
        self._new = 0  # tokens since the prompt, those of the present forward included
        self._shift: Tensor | int = 0 if past is None else past._shift  # of compact positions, by row
        self._next_position: Tensor
        self._valid: Tensor  # padding mask of the unpruned batch
        self._memo: dict[Any, Any] = {}

    @classmethod
    def unpruned(cls, family: Family, config: PruningConfig, valid: Tensor) -> "PrunedPrompt":
        """A prompt that was read as it is, with its padding mask ``[B, L]``."""
        self = cls(family, config, Prompt([], [], [], None))
        self._valid = valid
        self.stages[0] = Stage.unpruned(valid, tuple(valid.sum(1).tolist()))
        self._next_position = valid.sum(1) + family.first_position
        self._first_length = valid.shape[1]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "PrunedPrompt":
        """For copies of a cache: nothing but the state; tensors are never changed in place."""
        copied = copy(self)
        copied.stages, copied._memo = dict(self.stages), {}
        copied._past = deepcopy(self._past, memo)
        return copied

    def begin(
        self, embeds: Tensor, valid: Tensor, position_ids: Tensor | None, deepstack: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Take the step before the language model.

        Args:
            embeds: input embeddings ``[B, L, C]``, visual features merged in.
            valid: padding mask ``[B, L]``.
            position_ids: ``[B or 1, L]``, or ``[axes, B or 1, L]``; None: those that follow.
            deepstack: visual features that are added again after the first layers, each ``[visual tokens, C]``.

        Returns:
            What the first layer is to see: embeddings ``[B, L', C]``, position ids, padding mask (of the past, too),
            deepstack features.
        """
        lengths = tuple(valid.sum(1).tolist())  # the prefill's one host sync, before any layer
        if position_ids is None:
            position_ids = self._following_positions(valid.shape[1], valid.device)
        self._next_position = _next_positions(position_ids.expand(*position_ids.shape[:-2], len(valid), -1))
        self._valid = valid
        position_ids = position_ids - self._shift
        stage = Stage.unpruned(valid, lengths)
        self._groups = group_images(self.prompt, self._config.method, embeds.device)
        self.stages[0] = stage
        if 0 in self._steps:
            if deepstack:
                places = self.is_visual.to(embeds.device).unsqueeze(-1)
                deepstack = [embeds.new_zeros(embeds.shape).masked_scatter(places, level) for level in deepstack]
            embeds, *levels = self._take_step(0, stage, [embeds, *deepstack])
            if levels:
                left = self.visual_left
                deepstack = [level[left] for level in levels]
            stage = self.stages[0]
            position_ids = self._positions(position_ids, stage)
        self._first_length, self._new = embeds.shape[1], 0
        return embeds, position_ids, self._keys(0).valid.long(), list(deepstack)

    @property
    def is_visual(self) -> Tensor:
        """True at visual tokens of the unpruned batch ``[B, L]``, on the CPU."""
        is_visual = torch.zeros(self._valid.shape, dtype=torch.bool)
        for row, places in zip(self.prompt.rows, self.prompt.places, strict=True):
            is_visual[row, places] = True
        return is_visual

    @property
    def visual_left(self) -> Tensor:
        """True at the visual tokens that the first layer sees ``[B, L']``."""
        stage = self.stages[0]
        return self.is_visual.to(stage.index.device).gather(1, stage.index) & stage.valid

    @property
    def tokens(self) -> int:
        """Tokens of the unpruned conversation that have been read, padding counted."""
        return self._before + self._valid.shape[1] + self._new

    def tokens_at(self, cached: int) -> int:
        """Tokens of the unpruned conversation, of those read, when the first layer had cached ``cached``."""
        return self.tokens - (self.cached(0, self.tokens) - cached)

    @property
    def _before(self) -> int:
        return 0 if self._past is None else self._past.tokens

    def next_positions(self, queries: int) -> Tensor:
        """Position ids, in the unpruned sequence, of the next tokens ``[B, queries]`` or ``[axes, B, queries]``."""
        steps = torch.arange(self._new, self._new + queries, device=self._next_position.device)
        return self._next_position.unsqueeze(-1) + steps

    def rewind(self, cached: int) -> None:
        """Go back, if need be, to when the first layer had cached ``cached`` tokens."""
        past = 0 if self._past is None else self._past.cached(0, self._before)
        self._new = cached - past - self._first_length
        if self._new < 0:
            self._forget(-self._new)
            self._new = 0

    def resume(self, queries: int, position_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Position ids and padding mask of the next ``queries`` tokens."""
        if position_ids is None:
            position_ids = self.next_positions(queries)
        self._new += queries
        keys = self._keys(0)
        return position_ids - self._shift, keys.valid.long() if keys.padded else None

    def cached(self, layer: int, tokens: int) -> int:
        """Tokens in a layer's cache once ``tokens`` of the unpruned sequence, all images among them, have been read."""
        past = 0 if self._past is None else self._past.cached(layer, self._before)
        own = self.stages[self._begun(layer)].index.shape[1]
        return past + own + tokens - self._before - self._valid.shape[1]

    def _forget(self, tokens: int) -> None:
        """Cut the prompt's last tokens: guesses, read along with it, that assisted decoding has rejected."""
        self.stages = {layer: stage.without_last(tokens) for layer, stage in self.stages.items()}
        self._first_length -= tokens
        self._next_position = self._next_position - tokens
        self._valid = self._valid[:, :-tokens]

    def enter_layer(self, layer: int, hidden: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, dict]:
        """Take this layer's step, if it has one, and cut what the text model hands to every layer to the stage.

        Position ids are taken away: the rotary embedding is made, and flash attention would read ids that jump as
        several packed sequences.

        Args:
            layer: language-model layer.
            hidden: hidden states that reach it.
            inputs: the layer's keyword arguments.

        Returns:
            Hidden states and the keyword arguments that replace the given ones.
        """
        begun = self._begun(layer)
        if layer in self._steps and layer > 0 and layer not in self.stages:
            [hidden] = self._take_step(layer, self.stages[begun], [hidden])
            begun = layer
        changed: dict[str, Any] = {"position_ids": None}
        window, cache = self._window(layer), inputs.get(self._family.cache_name)
        holds_all = cache is None or layer >= len(cache.layers) or not cache.layers[layer].is_sliding
        if begun > 0 or window is not None or self.prompt.blocks is not None or self._keys_are_biased(begun):
            changed["attention_mask"] = self._memoised(
                ("mask", begun, window, holds_all, hidden.device),
                lambda: self._mask(begun, window, holds_all, hidden),
            )
        if begun > 0 and not self._new and (rotary := inputs.get("position_embeddings")) is not None:
            from_first = self.stages[begun].from_first
            changed["position_embeddings"] = self._memoised(
                ("rotary", begun, id(rotary)),
                lambda: tuple(gather_tokens(part, from_first.to(part.device)) for part in rotary),
            )
        return hidden, changed

    def _take_step(self, layer: int, stage: Stage, carried: list[Tensor]) -> list[Tensor]:
        """Take a layer's step; what the tokens that are left carry."""
        ratio = self._config.schedule[self._steps[layer]].keep_ratio
        left, self.stages[layer], self._groups = take_step(
            self._config.method, layer, ratio, stage, self._groups, carried
        )
        return left

    def _begun(self, layer: int) -> int:
        """The layer at which the stage of this one begins."""
        return max(start for start in self.stages if start <= layer)

    def _memoised(self, key: Any, make: Any) -> Any:
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def end_forward(self) -> None:
        """Forget what only the layers of one forward share."""
        self._memo.clear()

    def rows(self) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
        """For each row: this prompt's tokens, its visual tokens, and the visual ones left after each step.

        Places are those of the row's whole conversation without padding. Waits for the device.
        """
        valid = self._valid.cpu()
        unpadded = valid.cumsum(1) - 1
        stages = [self.stages[layer] for layer in self._steps]
        is_visual = self.is_visual
        before = [0] * len(valid) if self._past is None else self._past.row_tokens()
        for row in range(len(valid)):
            left = [stage.index[row][stage.valid[row]].cpu() for stage in stages]
            kept = tuple(before[row] + unpadded[row][index[is_visual[row][index]]] for index in left)
            yield int(valid[row].sum()), int(is_visual[row].sum()), kept

    def row_tokens(self) -> list[int]:
        """Tokens of each row's conversation that have been read, padding not counted."""
        own = (self._valid.sum(1) + self._new).tolist()
        return own if self._past is None else [a + b for a, b in zip(own, self._past.row_tokens(), strict=True)]

    def _window(self, layer: int) -> int | None:
        """The sliding window of a layer, in tokens, if it hides anything yet."""
        window = sliding_window(self._text, layer)
        return None if window is None or self.tokens <= window else window

    def _keys_are_biased(self, begun: int) -> bool:
        return self.stages[begun].bias is not None or (self._past is not None and self._past._keys_are_biased(begun))

    def _keys(self, layer: int) -> Keys:
        """All that the stage of a layer has read, this forward included."""
        stage = self.stages[self._begun(layer)]
        before, length = self._before, self._valid.shape[1]
        parts = [Keys(before + stage.index, stage.valid, stage.padded, stage.bias)]
        if self._past is not None:
            parts.insert(0, self._past._keys(layer))
        if self._new:
            parts.append(Keys.contiguous(before + length, self._new, stage.index))
        return Keys.following(parts)

    def _mask(self, layer: int, window: int | None, holds_all: bool, hidden: Tensor) -> Tensor | None:
        """The attention mask of a stage's layers, as the attention backend takes it."""
        queries, keys = hidden.shape[1], self._memoised(("keys", layer), lambda: self._keys(layer))
        backend = self._text._attn_implementation
        if "flash" in backend:  # takes 2-D masks only
            return keys.valid.long().to(hidden.device) if keys.padded else None
        blocks = None if self._new or self.prompt.blocks is None else self._blocks(layer)
        plain = window is None and blocks is None and keys.bias is None and not keys.padded
        whole = queries == keys.index.shape[1] and backend == "sdpa"  # which is causal by itself
        if plain and (queries == 1 or whole):
            return None
        if window is not None and not holds_all:  # sliding layers of a cache hold no more than that
            keys = keys.last(window - 1 + queries)
        return attention_mask(keys, queries, hidden.dtype, window, blocks, self._family.window_cuts_blocks).to(
            hidden.device
        )

    def _blocks(self, layer: int) -> Tensor:
        assert self.prompt.blocks is not None
        stage = self.stages[layer]
        return self.prompt.blocks.to(stage.index.device).gather(1, stage.index)

    def _following_positions(self, length: int, device: torch.device) -> Tensor:
        if self._past is not None:
            return self._past.next_positions(length)
        return self._family.first_position + torch.arange(length, device=device).unsqueeze(0)

    def _positions(self, position_ids: Tensor, stage: Stage) -> Tensor:
        """Position ids of the first stage, and the shift that decoding must follow."""
        if self._config.positions == "original":
            return gather_positions(position_ids, stage.index)
        first = self._family.first_position if self._past is None else self._past.next_positions(1) - self._shift
        numbers = (stage.valid.cumsum(1) - 1).clamp(min=0) + first
        lengths = torch.tensor(stage.lengths, device=position_ids.device).unsqueeze(1)
        self._shift = self._next_position.unsqueeze(1) - lengths - first
        return numbers


def _next_positions(position_ids: Tensor) -> Tensor:
    """The position after each row's last ``[B]``, or, with several rotary axes, on each ``[axes, B]``.

    Text goes on after the furthest of a visual token's axes; a leading text axis, one more than rotary axes, counts
    tokens by itself.
    """
    furthest = position_ids.amax(-1) + 1
    if furthest.ndim == 1:
        return furthest
    text, axes = furthest[: len(furthest) - 3], furthest[-3:]
    return torch.cat([text, axes.amax(0, keepdim=True).expand_as(axes)])
