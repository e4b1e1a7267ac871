"""One pruned prefill: a selection at every step, applied to the sequence and to whatever its tokens carry."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.config import PruningConfig
from multimodal.constants import constant, counting
from multimodal.errors import FlowpruneError
from multimodal.evidence import LanguageAttention
from multimodal.families import Geometry
from multimodal.methods import Selection, VisualTokens
from multimodal.plan import Plan, kept_count, step_ratio
from multimodal.runtime.answers import Answers, Compared
from multimodal.runtime.group import Group, grouped, members_of
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.masks import Keys
from multimodal.runtime.outcome import Merged, Outcome
from multimodal.runtime.placed import Placed, place
from multimodal.runtime.prompt import Prompt
from multimodal.runtime.reading import Reading, either
from multimodal.runtime.segment import Segment, gather_positions, gather_tokens


class Prefill(Reading):
    """The state of one prefill.

    Args:
        geometry: of the model.
        text_config: of the language model that runs.
        config: how to prune.
        prompt: what is read.
        past: what the cache holds of the conversation before; None: nothing.
        device: of the embeddings.
        placed: where the prompt's tokens are on the device, as a recording keeps it; None: it is copied there.
        plan: what rows have at most, where the prompt stands for all of its bucket; None: the prompt's own.
    """

    def __init__(
        self,
        geometry: Geometry,
        text_config: PretrainedConfig,
        config: PruningConfig,
        prompt: Prompt,
        past: Ledger | None,
        device: torch.device,
        placed: Placed | None = None,
        plan: Plan | None = None,
    ) -> None:
        members = members_of(prompt, config.exact)
        self.placed = place(prompt, members, device) if placed is None else placed
        valid = self.placed.valid
        super().__init__(geometry, text_config, past, valid, len(valid), valid.shape[1], device)
        self.config = config
        self.prompt = prompt
        self.plan = prompt.plan(config.schedule, text_config.num_hidden_layers) if plan is None else plan
        lengths = tuple(row.text_tokens + row.visual_tokens for row in self.plan.rows)
        self.segments: dict[int, Segment] = {0: Segment.unpruned(valid, lengths, at_most=plan is not None)}
        self.shift: Tensor | None = None if past is None else past.shift
        self.following: Tensor  # position ids after the prompt
        self._steps = {step.layer: number for number, step in enumerate(config.schedule)}
        self._merged: dict[int, list[Merged]] = {}  # what each step that merges left, by its layer
        self._groups = grouped(prompt, members, self.placed.tables)
        self._answers: Answers

    # before the language model

    def begin(
        self, embeds: Tensor, position_ids: Tensor | None, levels: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor | None]:
        """Take the step before the language model.

        Args:
            embeds: input embeddings ``[B, L, C]``, visual features merged in.
            position_ids: in the unpruned conversation ``[B or 1, L]``, or ``[axes, B or 1, L]``; None: they count.
            levels: what is added to the tokens again after each of the first layers ``[B, L, C]``.

        Returns:
            What the first layer is to see: embeddings ``[B, L', C]``, position ids.
        """
        self._answers = Answers(self, embeds)
        self._levels = list(levels)
        if 0 in self._steps:
            embeds, *self._levels = self._step(0, [embeds, *levels])
        return embeds, self._positions(position_ids)

    def _positions(self, position_ids: Tensor | None) -> Tensor | None:
        """Position ids of the tokens that the first layer sees, and the shift that later ones must follow."""
        segment, given = self.segments[0], position_ids is not None
        if position_ids is None:
            first = self.geometry.first_position + self.before
            position_ids = torch.arange(first, first + self._queries, device=self._device).unsqueeze(0)
        self.following = _following(position_ids.expand(*position_ids.shape[:-2], self._batch, -1))
        if not given and not segment.cut and self.shift is None:
            return None
        if segment.cut and self.config.positions == "compact":
            return self._compact(position_ids, segment)
        if segment.cut:
            position_ids = gather_positions(position_ids, segment.gatherable)
        return position_ids if self.shift is None else position_ids - self.shift

    def _compact(self, position_ids: Tensor, segment: Segment) -> Tensor:
        """Numbers without gaps, from where the conversation before ends; the shift grows by what is left out."""
        begin, width = self.geometry.first_position, segment.index.shape[1]
        numbers = constant(counting, self._device, begin, begin + width).unsqueeze(0)
        ends: Tensor | int = begin + width
        if segment.padded:
            numbers = (segment.valid.cumsum(1) - 1).clamp(min=0) + begin
            ends = segment.valid.sum(1, keepdim=True) + begin
        if self.past is not None:
            largest = torch.iinfo(position_ids.dtype).max
            first = position_ids.expand(self._batch, -1).masked_fill(~self.placed.valid, largest).amin(1, True)
            first = first - self.geometry.first_position - (0 if self.shift is None else self.shift)
            numbers, ends = numbers + first, ends + first
        self.shift = self.following.unsqueeze(1) - ends
        return numbers

    # one step

    def _step(self, layer: int, carried: Sequence[Tensor]) -> list[Tensor]:
        """Select, merge and gather; what the tokens that are left carry, ``[B, L', C]`` of ``[B, L, C]`` each."""
        before, hidden = self.segment_of(layer).to(carried[0].device), carried[0]
        self._groups = [group.to(hidden.device) for group in self._groups]
        chosen = [self._select(layer, group, before, hidden) for group in self._groups]
        after = [group.after(selection) for group, selection in zip(self._groups, chosen, strict=True)]
        kept = [group.in_prompt for group in after]
        index = torch.cat([self.placed.stays.to(hidden.device), self._by_row(after, kept)], 1)
        segment, gather = before.next(index, self._lengths(layer, before, after), before.bias)
        left = [gather_tokens(states, gather) for states in carried]
        weight, bias = self.config.merged_weight, segment.bias
        for group, old, selection, own in zip(after, self._groups, chosen, kept, strict=True):
            if selection.owner is None:
                continue
            rows = group.rows.unsqueeze(1)
            target = rows, segment.slots(own, group.rows)
            source = rows, before.slots(old.in_prompt, group.rows)
            for number, states in enumerate(carried):
                left[number] = left[number].index_put(target, selection.apply(states[source]))
            if weight > 0 and group.sizes is not None:
                bias = torch.zeros_like(segment.index, dtype=torch.float32) if bias is None else bias
                bias = bias.index_put(target, weight * group.sizes.log())
        self.segments[layer] = replace(segment, bias=bias)
        self._groups = after
        self._merged[layer] = [
            Merged([self.prompt.images[image].row for image in group.images], own, group.sizes)
            for group, own in zip(after, kept, strict=True)
            if group.sizes is not None
        ]
        return left

    def _select(self, layer: int, group: Group, segment: Segment, hidden: Tensor) -> Selection:
        method, newlines = self.config.method, len(group.layout.newlines)
        number = self._steps[layer]
        ratio = step_ratio(group.layout, self.config.schedule[number], number)
        count = kept_count(group.layout, ratio, group.index.shape[1] + newlines) - newlines

        def features() -> Tensor:
            return hidden[group.rows.unsqueeze(1), segment.slots(group.in_prompt, group.rows)]

        answer = partial(self._answers.answer, group, segment, hidden)
        selection = self.config.reduce(VisualTokens(layer, group.layout, group.index, features, answer), count)
        if self.config.exact and selection.kept.shape[1] != count:
            raise FlowpruneError(f"{method.name} left {selection.kept.shape[1]} tokens: it must leave exactly {count}.")
        return selection

    def _lengths(self, layer: int, before: Segment, after: Sequence[Group]) -> tuple[int, ...]:
        """Tokens of each row that a step leaves: as planned, or as counted where a method's counts are not exact."""
        if self.config.exact:
            return self.plan.lengths(layer)
        lengths = list(before.lengths)
        for group, old in zip(after, self._groups, strict=True):
            for image in group.images:
                lengths[self.prompt.images[image].row] -= old.index.shape[1] - group.index.shape[1]
        return tuple(lengths)

    def _by_row(self, groups: Sequence[Group], kept: Sequence[Tensor]) -> Tensor:
        """Tokens of images as ones of rows ``[B, most of a row]``, −1 pads."""
        [first, *others] = groups
        if not others and [self.prompt.images[image].row for image in first.images] == list(range(self._batch)):
            return kept[0]
        counts, columns = [0] * self._batch, []
        for group in groups:
            for image in group.images:
                row = self.prompt.images[image].row
                columns.append((row, counts[row], group.index.shape[1]))
                counts[row] += group.index.shape[1]
        index = torch.full((self._batch * max(counts),), -1, device=kept[0].device)
        places = constant(_places, index.device, max(counts), *columns)
        return index.index_copy(0, places, torch.cat([own.flatten() for own in kept])).view(self._batch, -1)

    def forget(self) -> None:
        super().forget()
        del self._answers, self._levels  # with the embeddings and attention that they hold

    def see_attention(self, layer: int, compared: Compared) -> None:
        """Keep of a layer's attention what the step after it reads."""
        if layer + 1 in self._steps:
            self._answers.see_attention(layer, compared)

    def looks_ahead(self, layer: int) -> bool:
        """Whether a step that comes before the layer reads how it would attend."""
        asked = (isinstance(each, LanguageAttention) and each.layer == "next" for each in self.config.method.evidence)
        return layer in self._steps and layer not in self.segments and any(asked)

    def see_next(self, layer: int, compared: Compared) -> None:
        """Keep of how a layer would attend what the step before it reads."""
        self._answers.see_next(layer, compared)

    # what layers are given

    def start_of(self, layer: int) -> int:
        starts = {*self.segments, *(self.past.keys if self.past is not None else ())}
        return max(start for start in starts if start <= layer)

    def segment_of(self, layer: int) -> Segment:
        """What of the prompt a layer sees."""
        return self.segments[max(start for start in self.segments if start <= layer)]

    def kinds(self, layer: int) -> tuple[bool, bool]:
        segment = self.segment_of(layer)
        new = segment.padded, segment.bias is not None
        return new if self.past is None else either(new, self.past.kinds(layer))

    def new_keys(self, layer: int) -> Keys:
        return self.segment_of(layer).keys(self.before)

    def blocks(self, layer: int) -> Tensor | None:
        if self.prompt.blocks is None:
            return None
        segment = self.segment_of(layer)
        return self.prompt.blocks.to(segment.index.device).gather(1, segment.gatherable)

    def enter_layer(self, layer: int, hidden: Tensor, inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        if layer in self._steps and layer not in self.segments:
            [hidden] = self._step(layer, [hidden])
        hidden, changed = super().enter_layer(layer, hidden, inputs)
        if (rotary := inputs.get("position_embeddings")) is not None:
            changed["position_embeddings"] = self.rotary(layer, rotary)
        return hidden, changed

    def added(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states that reach a layer, with what is added to them behind the one before."""
        if not 0 < layer <= len(self._levels):
            return hidden
        return hidden + self._levels[layer - 1].to(hidden.device, hidden.dtype)

    def rotary(self, layer: int, rotary: Sequence[Tensor]) -> Sequence[Tensor]:
        """The rotary angles of the tokens that a layer sees, of those that the first one did."""
        segment, first = self.segment_of(layer), self.segments[0]
        if segment is first:
            return rotary
        key = "rotary", id(segment), id(rotary)
        return self.memoised(key, lambda: self._gathered_rotary(rotary, segment, first))

    def _gathered_rotary(self, rotary: Sequence[Tensor], segment: Segment, first: Segment) -> tuple[Tensor, ...]:
        slots = first.slots(segment.gatherable.to(first.index.device))
        return tuple(gather_tokens(part, slots.to(part.device)) for part in rotary)

    def ended(self) -> Ledger:
        new = {layer: segment.keys(self.before) for layer, segment in self.segments.items()}
        padding = self.placed.padding
        if self.past is not None:
            return self.past.extended(new, self._queries, padding, self.following, self.shift)
        return Ledger(self._queries, 0, new, padding, self.following, self.shift)

    @property
    def outcome(self) -> Outcome:
        """What it did so far."""
        return Outcome(self.config, self.prompt, self.plan, self.past, dict(self.segments), dict(self._merged))


def _places(width: int, *columns: tuple[int, int, int]) -> Tensor:
    """Where stretches of rows lie in a flattened ``[B, width]``, from (row, first column, columns) of each."""
    return torch.cat([torch.arange(number, device="cpu") + row * width + start for row, start, number in columns])


def _following(position_ids: Tensor) -> Tensor:
    """The position after each row's last ``[B]``, or, with several rotary axes, on each ``[B, axes]``.

    Text goes on after the furthest of a visual token's axes; a leading text axis, one more than rotary axes, counts
    tokens by itself.
    """
    furthest = position_ids.amax(-1) + 1
    if furthest.ndim == 1:
        return furthest
    text, axes = furthest[: len(furthest) - 3], furthest[-3:]
    return torch.cat([text, axes.amax(0, keepdim=True).expand_as(axes)]).transpose(0, 1)
