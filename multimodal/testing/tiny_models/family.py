"""What a tiny model of a family is: how it is built, inputs for it, and its visual tokens re-derived by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

VISION_START, VISION_END, IMAGE_TOKEN, VIDEO_TOKEN, SEPARATOR = 5, 6, 7, 8, 4
FIRST_WORD, WORDS = 9, 60
LAYERS = 5

TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 4,
    "initializer_range": 0.2,
}

Patch = tuple[int, int, int]  # view, row, column
Token = dict[Patch, float] | None  # the patches it averages, with their weights; None: it belongs to no patch


class Media(NamedTuple):
    """One image or video of a prompt.

    Args:
        pixels: what the model is given of it, with a leading dimension of 1 or of its parts.
        ids: the token ids that stand for it.
    """

    pixels: dict[str, Tensor]
    ids: list[int]


@dataclass(frozen=True)
class TinyFamily:
    """A tiny random model, inputs for it, and what is known of it by hand.

    Args:
        build: makes the model.
        image: one image; a number picks among the family's sizes.
        tokens: for each image, then each video, of some inputs, the patches of every visual token.
        pictures: for each view the tower sees, its normalised frames ``[3, H, W]``.
        vision_attention: the attention module of the tower layer that feeds the projector.
        video: one video, if the family reads any.
        token_inputs: what the model must be told of each token id, beside the id.
        following_type: that of words after a prompt.
        mixes_media: whether images and videos may stand in one batch.
        copies_in_order: whether generate() keeps several images of a copied prompt in order, where it does at all.
        tower_order: for each view, the raster index of the patch at each place of the tower's sequence; None: the same.
        painted: the inputs with other pictures, in the order of ``pictures``.
        plain_decoder: whether the language model is a causal Llama-like one.
        rotary_axes: of the language model.
        gaps: kinds of prompts it does not read, and why.
        flash: whether flash attention can be pruned.
        windows: whether some layers of the language model see a sliding window.
        flash_tower: whether the stock vision tower is right with flash attention.
        sdpa: whether the language model has torch's scaled dot product attention; if not, it is eager throughout.
        sees_uncached: whether the stock model still sees its images in later steps of generate() without a cache.
    """

    build: Callable[[], PreTrainedModel]
    image: Callable[[PreTrainedModel, int, Generator], Media]
    tokens: Callable[[PreTrainedModel, dict], list[list[Token]]]
    pictures: Callable[[PreTrainedModel, dict], list[Sequence[Tensor]]]
    vision_attention: Callable[[PreTrainedModel], nn.Module]
    video: Callable[[PreTrainedModel, int, Generator], Media] | None = None
    token_inputs: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    following_type: int = 0
    mixes_media: bool = True
    copies_in_order: bool = True
    tower_order: Callable[[PreTrainedModel, dict], list[list[int]]] | None = None
    painted: Callable[[dict, list[Sequence[Tensor]]], dict] = lambda inputs, pictures: repainted(inputs, pictures)
    plain_decoder: bool = True
    rotary_axes: int = 1
    gaps: Mapping[str, str] = field(default_factory=dict)
    flash: bool = True
    windows: bool = False
    flash_tower: bool = True
    sdpa: bool = True
    sees_uncached: bool = True


def repainted(inputs: dict, pictures: list[Sequence[Tensor]]) -> dict:
    """Other pictures for a tower that is given them as they are."""
    frames, painted = torch.stack([frame for view in pictures for frame in view]), {}
    for key in ("pixel_values", "pixel_values_videos"):
        if key in inputs:
            shape = inputs[key].shape
            number = shape[:-3].numel()
            painted[key], frames = frames[:number].view(shape), frames[number:]
    return inputs | painted


def square(view: int, rows: int, columns: int) -> list[Token]:
    """One token a patch, row by row."""
    return [{(view, row, column): 1.0} for row in range(rows) for column in range(columns)]


def pooled(view: int, rows: int, columns: int, side: int) -> list[Token]:
    """One token for each ``side × side`` patches, row by row."""
    offsets = [(y, x) for y in range(side) for x in range(side)]
    return [
        {(view, side * row + y, side * column + x): 1 / len(offsets) for y, x in offsets}
        for row in range(rows // side)
        for column in range(columns // side)
    ]
