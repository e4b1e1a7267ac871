"""Drawn scenes with questions about small parts of them: what the shipped model is trained and tested on.

Describing a scene (``describe``), drawing it (``render``) and asking about it (``ask``) are separate, so that a decoder
can be trained without pictures. Everything is a function of (split, index): the same pair always gives the same scene,
picture and question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.data.describing import COLOURS, DIGITS, GREYS, LETTERS, SHAPES, SIZE, Item, Scene, describe
from pipelines.data.drawing import OUTLINES, render
from pipelines.data.sample import Sample

__all__ = [
    "COLOURS",
    "DIGITS",
    "GREYS",
    "KINDS",
    "LETTERS",
    "OUTLINES",
    "SHAPES",
    "SIZE",
    "SPLIT_SEEDS",
    "Item",
    "Question",
    "Scene",
    "ask",
    "describe",
    "render",
    "scene_rng",
    "scenes",
]

SPLIT_SEEDS = {"train": 1, "calibration": 2, "heldout": 3, "test": 4}


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer and the boxes that hold the evidence."""

    kind: str
    text: str
    answer: str
    regions: tuple[tuple[int, int, int, int], ...]


Background = Callable[[str, int], Image.Image]


def scenes(split: str, count: int, start: int = 0, background: Background | None = None) -> Iterator[Sample]:
    """Samples ``start`` to ``start + count`` of a split, one question a scene, the kinds taking turns.

    With ``background``, a picture by split and index, they are drawn on that instead of grounds of their own.
    """
    for index in range(start, start + count):
        rng = scene_rng(split, index)
        scene = describe(rng)
        question = ask(scene, KINDS[index % len(KINDS)], rng)
        image = render(scene, background(split, index) if background else None)
        yield Sample.asking(image, question.text, question.answer, kind=question.kind, regions=question.regions)


def scene_rng(split: str, index: int) -> np.random.Generator:
    """The generator that fixes everything about one scene."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLIT_SEEDS)}")
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """A question of the given kind about one or two random objects of the scene."""
    target, other = (scene.objects[index] for index in rng.permutation(len(scene.objects))[:2])
    text, answer, asked = _ASKERS[kind](target, other)
    return Question(kind, text, answer, tuple(item.box for item in asked))


_Asked = tuple[str, str, tuple[Item, ...]]


def _colour(target: Item, other: Item) -> _Asked:
    return f"what colour is the {target.glyph} on?", target.colour, (target,)


def _shape(target: Item, other: Item) -> _Asked:
    return f"what shape is {target.colour}?", target.shape, (target,)


def _digit(target: Item, other: Item) -> _Asked:
    return f"what digit is on the {target.colour} shape?", target.glyph, (target,)


def _shape_by_digit(target: Item, other: Item) -> _Asked:
    return f"what shape is the {target.glyph} on?", target.shape, (target,)


def _where(target: Item, other: Item) -> _Asked:
    return f"where is the {target.colour} shape?", " ".join(target.place), (target,)


def _two_digits(target: Item, other: Item) -> _Asked:
    text = f"what digits are on the {target.colour} shape and the {other.colour} shape?"
    return text, f"{target.glyph} {other.glyph}", (target, other)


_ASKERS: dict[str, Callable[[Item, Item], _Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "digit": _digit,
    "shape_by_digit": _shape_by_digit,
    "where": _where,
    "two_digits": _two_digits,
}
KINDS = tuple(_ASKERS)
