"""The prunable tokens of a prompt, images of one layout together."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

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


def grouped(prompt: Prompt, together: bool, device: torch.device) -> list[Group]:
    """A prompt's images by layout.

    Args:
        prompt: which.
        together: whether images of one layout are handled together; one by one where they may come to differ in count.
        device: of the tensors.
    """
    members = defaultdict(list)
    for number, image in enumerate(prompt.images):
        members[image.layout if together else (image.layout, number)].append(number)
    groups = []
    for numbers in members.values():
        images = [prompt.images[number] for number in numbers]
        layout = images[0].layout
        patches = np.delete(np.arange(layout.visual_tokens), layout.newlines)
        table = torch.from_numpy(np.stack([image.index[patches] for image in images])).to(device)
        rows = torch.tensor([image.row for image in images], device=device)
        index = torch.arange(layout.patch_tokens, device=device).expand(len(images), -1)
        groups.append(Group(layout, tuple(numbers), rows, table, index))
    return groups
