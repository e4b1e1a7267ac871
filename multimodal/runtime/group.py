"""The prunable tokens of a prompt, images of one layout together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multimodal.constants import constant, counting, integers
from multimodal.layout import Layout
from multimodal.methods import Selection
from multimodal.runtime.prompt import Prompt


@dataclass(frozen=True)
class Group:
    """The prunable tokens, still there, of images that share a layout.

    Args:
        layout: the images'.
        images: which of the prompt's.
        rows: their batch rows ``[images]``.
        table: index in the unpruned prompt of each of the layout's patch tokens ``[images, patch tokens]``.
        index: which of the layout's patch tokens are left ``[images, n]``.
        sizes: how many tokens each of them stands for ``[images, n]``, float32; None: one.
    """

    layout: Layout
    images: tuple[int, ...]
    rows: Tensor
    table: Tensor
    index: Tensor
    sizes: Tensor | None = None

    @property
    def in_prompt(self) -> Tensor:
        """Index in the unpruned prompt of the tokens left ``[images, n]``."""
        return self.table.gather(1, self.index)

    def to(self, device: torch.device) -> "Group":
        """The same on another device."""
        if self.index.device == device:
            return self
        rows, table, index = (tensor.to(device) for tensor in (self.rows, self.table, self.index))
        sizes = None if self.sizes is None else self.sizes.to(device)
        return replace(self, rows=rows, table=table, index=index, sizes=sizes)

    def after(self, selection: Selection) -> "Group":
        """What a selection leaves."""
        index, sizes = self.index.gather(1, selection.kept), self.sizes
        if selection.owner is not None:
            sizes = selection.sizes(sizes)
        elif sizes is not None:
            sizes = sizes.gather(1, selection.kept)
        return replace(self, index=index, sizes=sizes)


def members_of(prompt: Prompt, together: bool) -> list[tuple[Layout, tuple[int, ...]]]:
    """The layout of each group of a prompt's images, and which of them are in it.

    Args:
        prompt: which.
        together: whether images of one layout are handled together; one by one where they may come to differ in count.
    """
    members = defaultdict(list)
    for number, image in enumerate(prompt.images):
        members[image.layout if together else (image.layout, number)].append(number)
    return [(prompt.images[numbers[0]].layout, tuple(numbers)) for numbers in members.values()]


def grouped(prompt: Prompt, members: Sequence[tuple[Layout, tuple[int, ...]]], tables: Sequence[Tensor]) -> list[Group]:
    """A prompt's images by layout, before any step.

    Args:
        prompt: which.
        members: :func:`members_of` it.
        tables: of each group (:class:`multimodal.runtime.placed.Placed`).
    """
    groups = []
    for (layout, images), table in zip(members, tables, strict=True):
        rows = constant(integers, table.device, *(prompt.images[image].row for image in images))
        index = constant(counting, table.device, 0, layout.patch_tokens).expand(len(images), -1)
        groups.append(Group(layout, images, rows, table, index))
    return groups
