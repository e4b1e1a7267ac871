"""One pruning step: selection, merging and gathering, for all images of a batch."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multimodal.costs import kept_count
from multimodal.errors import FlowpruneError
from multimodal.layout import Layout
from multimodal.methods import Method, VisualTokens
from multimodal.prompt import Prompt
from multimodal.sequence import Stage


@dataclass(frozen=True)
class Group:
    """The prunable tokens, still there, of images that share a layout: ``[images, n]`` each."""

    row_numbers: tuple[int, ...]  # their batch rows
    layout: Layout
    rows: Tensor  # the same [images], on the device
    slots: Tensor  # places in the current stage
    index: Tensor  # which of the layout's patch tokens
    importance: Tensor | None

    def to(self, device: torch.device) -> "Group":
        importance = None if self.importance is None else self.importance.to(device)
        rows, slots, index = (t.to(device) for t in (self.rows, self.slots, self.index))
        return Group(self.row_numbers, self.layout, rows, slots, index, importance)


def group_images(prompt: Prompt, method: Method, device: torch.device) -> list[Group]:
    """Images by layout, each with the importance map over its patch tokens."""
    maps = prompt.maps
    members = defaultdict(list)
    for image, layout in enumerate(prompt.layouts):
        members[layout if method.exact else (layout, image)].append(image)
    groups = []
    for images in members.values():
        layout = prompt.layouts[images[0]]
        patches = layout.patch_places
        row_numbers = tuple(prompt.rows[image] for image in images)
        places = torch.stack([prompt.places[image] for image in images])
        groups.append(
            Group(
                row_numbers,
                layout,
                torch.tensor(row_numbers, device=device),
                places[:, patches].to(device),
                torch.arange(layout.patch_tokens, device=device).expand(len(images), -1),
                None
                if maps is None
                else torch.stack([maps[image] for image in images]).to(device)[:, patches.to(device)],
            )
        )
    return groups


def take_step(
    method: Method, layer: int, keep_ratio: float, stage: Stage, groups: Sequence[Group], carried: Sequence[Tensor]
) -> tuple[list[Tensor], Stage, list[Group]]:
    """Select, merge and gather at one step.

    Args:
        method: what ranks and merges.
        layer: that the step comes before.
        keep_ratio: share of the visual tokens still there that each image keeps.
        stage: the sequence so far.
        groups: the prunable tokens in it.
        carried: what its tokens carry, ``[B, L, C]`` each; first their hidden states.

    Returns:
        What the tokens that are left carry, the next stage, the prunable tokens in it.

    Raises:
        FlowpruneError: the method leaves another number of tokens than it must.
    """
    hidden = carried[0]
    stage = stage.to(hidden.device)
    keep = stage.valid.clone()
    lengths = list(stage.lengths)
    bias = stage.bias
    weight = method.biases_attention
    befores = [group.to(hidden.device) for group in groups]
    afters, merges = [], []
    for group in befores:
        rows = group.rows.unsqueeze(1)
        tokens = VisualTokens(layer, group.layout, group.index, hidden[rows, group.slots], group.importance)
        newlines = len(group.layout.newlines)
        count = kept_count(group.layout, keep_ratio, group.slots.shape[1] + newlines) - newlines
        reduced = method.reduce(tokens, count)
        if method.exact and reduced.kept.shape[1] != count:
            raise FlowpruneError(f"{method.name} left {reduced.kept.shape[1]} tokens: it must leave exactly {count}.")
        slots = group.slots.gather(1, reduced.kept)
        keep[rows, group.slots] = False
        keep[rows, slots] = True
        if reduced.sizes is not None and weight > 0:
            bias = torch.zeros(stage.index.shape, device=hidden.device) if bias is None else bias
            bias = bias.index_put((rows, slots), weight * reduced.sizes.log())
        if reduced.importance is None and group.importance is not None:
            reduced = reduced._replace(importance=group.importance.gather(1, reduced.kept))
        for row in group.row_numbers:
            lengths[row] -= group.slots.shape[1] - slots.shape[1]
        index = group.index.gather(1, reduced.kept)
        afters.append(replace(group, slots=slots, index=index, importance=reduced.importance))
        merges.append(reduced.merge)
    new_lengths = tuple(lengths)
    after = stage.places_after(keep, new_lengths)
    groups = [replace(g, slots=after[g.rows.unsqueeze(1), g.slots]) for g in afters]
    stage = stage.keep(keep, new_lengths, bias, first=layer == 0)
    left = [stage.rows(states) for states in carried]
    for before, group, merge in zip(befores, groups, merges, strict=True):
        if merge is not None:
            rows = group.rows.unsqueeze(1)
            left = [
                states.index_put((rows, group.slots), merge(unpruned[rows, before.slots]))
                for states, unpruned in zip(left, carried, strict=True)
            ]
    return left, stage, groups
