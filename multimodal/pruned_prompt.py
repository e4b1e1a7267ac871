"""One prompt on its way through the language model: selection at every step, then masks and positions to decode with.

Knows tensors and methods; knows nothing of hooks. The pruner drives it from hooks, the search from cached features.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.costs import kept_count
from multimodal.errors import FlowpruneError
from multimodal.families import Family
from multimodal.layout import Layout
from multimodal.methods import VisualTokens
from multimodal.prompt import Prompt
from multimodal.sequence import Stage, causal_mask, gather_positions, gather_tokens, stage_mask, with_new


@dataclass(frozen=True)
class _Group:
    """The prunable tokens, still there, of images that share a layout: ``[images, n]`` each."""

    images: tuple[int, ...]  # their places in the prompt
    layout: Layout
    rows: Tensor  # their batch rows [images]
    slots: Tensor  # places in the current stage
    index: Tensor  # which of the layout's patch tokens
    importance: Tensor | None


class PrunedPrompt:
    """The state of one prefill and of the decoding that follows it.

    Args:
        family: of the model.
        config: what to do.
        prompt: the images.
    """

    def __init__(self, family: Family, config: PruningConfig, prompt: Prompt) -> None:
        self.prompt = prompt
        self.stages: dict[int, Stage] = {}  # by the layer they begin at
        self._family = family
        self._config = config
        self._steps = {step.layer: number for number, step in enumerate(config.schedule)}
        self._groups: list[_Group] = []
        self._first_length = 0
        self._new = 0  # tokens since the prompt, those of the present forward included
        self._shift: Tensor | None = None
        self._next_position: Tensor
        self._valid: Tensor  # padding mask of the unpruned batch
        self._memo: dict[int, tuple[int, dict[str, Any]]] = {}

    def begin(self, embeds: Tensor, valid: Tensor, position_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Take the step before the language model.

        Args:
            embeds: input embeddings ``[B, L, C]``, visual features merged in.
            valid: padding mask ``[B, L]``.
            position_ids: ``[B or 1, L]``, or ``[axes, B or 1, L]``; None: 0, 1, 2, …

        Returns:
            What the first layer is to see: embeddings ``[B, L', C]``, position ids, attention mask (2-D, or 4-D
            additive where recycled tokens are weighted).
        """
        lengths = tuple(valid.sum(1).tolist())  # the prefill's one host sync, before any layer
        if position_ids is None:
            position_ids = torch.arange(valid.shape[1], device=valid.device).unsqueeze(0)
        self._next_position = position_ids.expand(*position_ids.shape[:-2], len(valid), -1).amax(-1) + 1
        self._valid = valid
        stage = Stage.unpruned(valid, lengths)
        self._groups = self._grouped(embeds.device)
        self.stages[0] = stage
        if 0 in self._steps:
            embeds, stage = self._step(0, stage, embeds)
            self.stages[0] = stage
            position_ids = self._positions(position_ids, stage)
        self._first_length, self._new = embeds.shape[1], 0
        return embeds, position_ids, self._first_mask(stage, embeds)

    @property
    def tokens(self) -> int:
        """Tokens of the unpruned sequence that have been read."""
        return self._valid.shape[1] + self._new

    def resume(self, embeds: Tensor, position_ids: Tensor | None, cached: int) -> tuple[Tensor, Tensor | None]:
        """Position ids and attention mask of new tokens ``[B, Q, C]`` when the first layer has cached ``cached``."""
        if cached < self._first_length:
            self._forget(self._first_length - cached)
        queries, seen = embeds.shape[1], cached - self._first_length
        self._new = seen + queries
        if position_ids is None:
            steps = torch.arange(seen, seen + queries, device=embeds.device)
            position_ids = self._next_position.unsqueeze(-1) + steps
        if self._shift is not None:
            position_ids = position_ids - self._shift
        stage = self.stages[0]
        if not stage.padded and stage.bias is None:
            return position_ids, None
        return position_ids, self._first_mask(stage, embeds)

    def cached(self, layer: int, tokens: int) -> int:
        """Tokens in a layer's cache once ``tokens`` of the unpruned sequence, all images among them, have been read."""
        return tokens - self._valid.shape[1] + self.stages[self._begun(layer)].index.shape[1]

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
            hidden, self.stages[layer] = self._step(layer, self.stages[begun], hidden)
            begun = layer
        if begun == 0:
            return hidden, {"position_ids": None}
        stage = self.stages[begun]
        key = id(inputs.get("attention_mask"))  # layers of one type share a mask, and so the cut one
        memo = self._memo.get(begun)
        if memo is None or memo[0] != key:
            memo = self._memo[begun] = (key, self._cut(stage, hidden, inputs))
        return hidden, memo[1]

    def _begun(self, layer: int) -> int:
        """The layer at which the stage of this one begins."""
        return max(start for start in self.stages if start <= layer)

    def end_forward(self) -> None:
        """Forget what only the layers of one forward share."""
        self._memo.clear()

    def rows(self) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
        """For each row: its tokens, its visual tokens, and the visual ones left after each step.

        Places are those of the row without padding. Waits for the device.
        """
        is_visual = torch.zeros(self._valid.shape, dtype=torch.bool)
        for row, places in zip(self.prompt.rows, self.prompt.places, strict=True):
            is_visual[row, places] = True
        valid = self._valid.cpu()
        unpadded = valid.cumsum(1) - 1
        stages = [self.stages[layer] for layer in self._steps]
        for row in range(len(valid)):
            left = [stage.index[row][stage.valid[row]].cpu() for stage in stages]
            kept = tuple(unpadded[row][index[is_visual[row][index]]] for index in left)
            yield int(valid[row].sum()), int(is_visual[row].sum()), kept

    def _cut(self, stage: Stage, hidden: Tensor, inputs: Mapping[str, Any]) -> dict[str, Any]:
        mask = inputs.get("attention_mask")
        if mask is None and stage.padded and "flash" in self._family.text_model.config._attn_implementation:
            mask = with_new(self.stages[0].valid, self._new)  # flash takes 2-D masks only
        mask = stage_mask(mask, stage, self._first_length, self._new, hidden)
        cut: dict[str, Any] = {"attention_mask": mask, "position_ids": None}
        if not self._new and (embeddings := inputs.get("position_embeddings")) is not None:
            cut["position_embeddings"] = tuple(gather_tokens(part, stage.from_first) for part in embeddings)
        return cut

    def _grouped(self, device: torch.device) -> list[_Group]:
        """Images by layout, each with the importance map over its patch tokens."""
        maps = self.prompt.maps
        members = defaultdict(list)
        for image, layout in enumerate(self.prompt.layouts):
            members[layout if self._config.method.exact else (layout, image)].append(image)
        groups = []
        for images in members.values():
            layout = self.prompt.layouts[images[0]]
            patches = layout.patch_places.to(device)
            places = torch.stack([self.prompt.places[image] for image in images]).to(device)
            groups.append(
                _Group(
                    tuple(images),
                    layout,
                    torch.tensor([self.prompt.rows[image] for image in images], device=device),
                    places[:, patches],
                    torch.arange(layout.patch_tokens, device=device).expand(len(images), -1),
                    None if maps is None else torch.stack([maps[image] for image in images])[:, patches],
                )
            )
        return groups

    def _step(self, layer: int, stage: Stage, hidden: Tensor) -> tuple[Tensor, Stage]:
        """Select, merge and gather at one step."""
        keep_ratio = self._config.schedule[self._steps[layer]].keep_ratio
        keep = stage.valid.clone()
        lengths = list(stage.lengths)
        bias = stage.bias
        method, weight = self._config.method, self._config.method.biases_attention
        reduced_groups, merged = [], []
        for group in self._groups:
            rows = group.rows.unsqueeze(1)
            features = hidden[rows, group.slots]
            tokens = VisualTokens(layer, group.layout, group.index, features, group.importance)
            newlines = len(group.layout.newlines)
            count = kept_count(group.layout, keep_ratio, group.slots.shape[1] + newlines) - newlines
            reduced = method.reduce(tokens, count)
            if method.exact and reduced.kept.shape[1] != count:
                raise FlowpruneError(
                    f"{method.name} left {reduced.kept.shape[1]} tokens: it must leave exactly {count}."
                )
            slots = group.slots.gather(1, reduced.kept)
            keep[rows, group.slots] = False
            keep[rows, slots] = True
            if reduced.sizes is not None and weight > 0:
                bias = torch.zeros(stage.index.shape, device=hidden.device) if bias is None else bias
                bias = bias.index_put((rows, slots), weight * reduced.sizes.log())
            if reduced.importance is None and group.importance is not None:
                reduced = reduced._replace(importance=group.importance.gather(1, reduced.kept))
            for image in group.images:
                lengths[self.prompt.rows[image]] -= group.slots.shape[1] - slots.shape[1]
            index = group.index.gather(1, reduced.kept)
            reduced_groups.append(replace(group, slots=slots, index=index, importance=reduced.importance))
            merged.append(reduced.features)
        new_lengths = tuple(lengths)
        after = stage.places_after(keep, new_lengths)
        self._groups = [replace(g, slots=after[g.rows.unsqueeze(1), g.slots]) for g in reduced_groups]
        stage = stage.keep(keep, new_lengths, bias, first=layer == 0)
        hidden = stage.rows(hidden)
        for group, changed in zip(self._groups, merged, strict=True):
            if changed is not None:
                hidden = hidden.index_put((group.rows.unsqueeze(1), group.slots), changed)
        return hidden, stage

    def _positions(self, position_ids: Tensor, stage: Stage) -> Tensor:
        """Position ids of the first stage, and the shift that decoding must follow."""
        if self._config.positions == "original":
            return gather_positions(position_ids, stage.index)
        if position_ids.ndim == 3:
            raise FlowpruneError("positions 'compact' does not fit several rotary axes: use positions='original'.")
        lengths = torch.tensor(stage.lengths, device=position_ids.device)
        self._shift = (self._next_position - lengths).unsqueeze(1)
        return (stage.valid.cumsum(1) - 1).clamp(min=0)

    def _first_mask(self, stage: Stage, embeds: Tensor) -> Tensor:
        """A mask always comes along: transformers reads jumping positions without one as packed sequences."""
        valid = with_new(stage.valid, self._new)
        return valid.long() if stage.bias is None else causal_mask(valid, embeds.shape[1], embeds.dtype, stage.bias)
