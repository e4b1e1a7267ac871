"""A prompt on the device: where its tokens are, in numbers that are copied there together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.layout import Layout
from multimodal.runtime.prompt import Prompt

Numbers = dict[str, NDArray[np.int64]]  # by name; what :class:`Placed` is made of


@dataclass(frozen=True)
class Placed:
    """Where a prompt's tokens are.

    Args:
        valid: False at padding ``[B, L]``.
        padding: places of each row that are no token ``[B]``.
        stays: index of each row's text and newline tokens ``[B, most of them]``, −1 pads on the left.
        text: index of its text tokens ``[B, most of them]``, likewise.
        last: index of its last token ``[B, 1]``.
        tables: for each group of images, index of each of its layout's patch tokens ``[images, patch tokens]``.
    """

    valid: Tensor
    padding: Tensor
    stays: Tensor
    text: Tensor
    last: Tensor
    tables: tuple[Tensor, ...]

    @classmethod
    def of(cls, numbers: Mapping[str, Tensor]) -> "Placed":
        """From the tensors of :func:`numbers_of`."""
        tables = [tensor for name, tensor in numbers.items() if name.startswith("table")]
        named = {name: numbers[name] for name in ("padding", "stays", "text", "last")}
        return cls(valid=numbers["valid"] != 0, tables=tuple(tables), **named)


def place(prompt: Prompt, members: Sequence[tuple[Layout, Sequence[int]]], device: torch.device) -> Placed:
    """A prompt on a device.

    Args:
        prompt: which.
        members: its groups of images, as :func:`multimodal.runtime.group.members_of` gives them.
        device: where.
    """
    numbers = numbers_of(prompt, members)
    shapes = {name: array.shape for name, array in numbers.items()}
    return Placed.of(unpacked(sendable(packed(numbers), device).to(device, non_blocking=True), shapes))


def numbers_of(
    prompt: Prompt, members: Sequence[tuple[Layout, Sequence[int]]], stays: int = 0, text: int = 0
) -> Numbers:
    """Where a prompt's tokens are, on the host.

    Args:
        prompt: which.
        members: its groups of images.
        stays, text: the least columns of what :class:`Placed` has under these names.
    """
    is_text, length = prompt.valid & ~prompt.is_visual, prompt.valid.shape[1]
    never = is_text.copy()
    for image in prompt.images:
        never[image.row, image.index[list(image.layout.newlines)]] = True
    numbers = {
        "valid": prompt.valid.astype(np.int64),
        "padding": (~prompt.valid).sum(1),
        "stays": _padded_rows(never, stays),
        "text": _padded_rows(is_text, text),
        "last": (length - 1 - prompt.valid[:, ::-1].argmax(1))[:, None],
    }
    for number, (layout, images) in enumerate(members):
        patches = np.delete(np.arange(layout.visual_tokens), layout.newlines)
        numbers[f"table {number}"] = np.stack([prompt.images[image].index[patches] for image in images])
    return numbers


def packed(numbers: Numbers) -> NDArray[np.int64]:
    """All of them in one row."""
    return np.concatenate([array.ravel() for array in numbers.values()])


def sendable(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """Numbers as a tensor on the host, from which a copy to a device need not be waited for."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def unpacked(row: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What :func:`packed` packed, views of one tensor."""
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())]).tolist()
    parts = zip(shapes.items(), pairwise(ends), strict=True)
    return {name: row[first:last].view(shape) for (name, shape), (first, last) in parts}


def _padded_rows(chosen: NDArray[np.bool_], columns: int) -> NDArray[np.int64]:
    """Index of the chosen places of each row ``[B, most of them]``, −1 pads on the left."""
    counts = chosen.sum(1)
    index = np.full((len(chosen), max(int(counts.max()), columns, 1)), -1)
    for row, places in enumerate(chosen):
        index[row, index.shape[1] - counts[row] :] = np.flatnonzero(places)
    return index
