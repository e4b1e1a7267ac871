"""Prompts of one shape: what a recording is made for, and a prompt padded to it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.layout import Layout
from multimodal.plan import Plan, make_plan
from multimodal.runtime.prompt import Prompt

LEVEL = "level "  # names what is added to the tokens again after some layer

Images = tuple[tuple[Layout, int, tuple[int, ...]], ...]  # layout, batch row and sources of each


@dataclass(frozen=True)
class Bucket:
    """Everything that the shapes of a pruned prefill follow from.

    Args:
        images: layout, batch row and sources of each image, in order.
        rows: of the batch.
        text: tokens of each row that are not visual, at most; rounded up.
        tensors: shape, dtype and device of every tensor that is read.
        reader: what reads: the model, where its weights are, its attention backend, and the config.
    """

    images: Images
    rows: int
    text: int
    tensors: Hashable
    reader: Hashable

    @classmethod
    def of(cls, prompt: Prompt, multiple: int, tensors: Mapping[str, Tensor], reader: Hashable) -> "Bucket":
        """The bucket that a prompt falls into.

        Args:
            prompt: which.
            multiple: what text lengths are rounded up to a multiple of.
            tensors: that are read with it, by name; as long as the prompt along their :func:`length_axis`.
            reader: see above.
        """
        rows, length = prompt.valid.shape
        images = tuple((image.layout, image.row, image.sources) for image in prompt.images)
        visual = _visual_tokens(_by_row(images, rows))
        text = max(int((prompt.valid.sum(1) - visual).max()), length - max(visual))
        evidence = tuple((request, tuple(map(_kind, given))) for request, given in prompt.evidence.items())
        kinds = tuple((name, _kind(tensor, length_axis(name))) for name, tensor in tensors.items())
        return cls(images, rows, -(-max(text, 1) // multiple) * multiple, (evidence, kinds), reader)

    @property
    def length(self) -> int:
        """Tokens of the padded, unpruned prompt."""
        return self.text + max(_visual_tokens(self._layouts))

    @property
    def stays(self) -> int:
        """Text and newline tokens of a row, at most."""
        return self.text + max(sum(len(layout.newlines) for layout in layouts) for layouts in self._layouts)

    @property
    def _layouts(self) -> list[list[Layout]]:
        return _by_row(self.images, self.rows)

    def plan(self, config: PruningConfig, layers: int) -> Plan:
        """What rows have at most."""
        return make_plan([(layouts, self.text) for layouts in self._layouts], config.schedule, layers)

    def padded(self, prompt: Prompt) -> Prompt:
        """One of its prompts, padded on the left to its length."""
        offset = self.length - prompt.valid.shape[1]
        images = [replace(image, index=image.index + offset) for image in prompt.images]
        return replace(prompt, valid=np.pad(prompt.valid, ((0, 0), (offset, 0))), images=images)


def _by_row(images: Images, rows: int) -> list[list[Layout]]:
    return [[layout for layout, own, _ in images if own == row] for row in range(rows)]


def _visual_tokens(by_row: list[list[Layout]]) -> list[int]:
    return [sum(layout.visual_tokens for layout in layouts) for layouts in by_row]


def length_axis(name: str) -> int:
    """Which axis of a tensor that is read with a prompt is as long as that."""
    return -2 if name == "embeds" or name.startswith(LEVEL) else -1


def _kind(tensor: Tensor, length_axis: int | None = None) -> Hashable:
    """Shape, dtype and device; the length counts as any other prompt's."""
    shape = list(tensor.shape)
    if length_axis is not None:
        del shape[length_axis]
    return tuple(shape), tensor.dtype, tensor.device
