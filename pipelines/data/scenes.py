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
        yield Sample(image, question.text, question.answer, question.kind, question.regions)


def scene_rng(split: str, index: int) -> np.random.Generator:
    """The generator that fixes everything about one scene."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLIT_SEEDS)}")
    return np.random.default_rng([SPLIT_SEEDS[split], index])


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """A question of the given kind about one, two or, where it counts, all alike objects of the scene."""
    target, other = (scene.objects[index] for index in rng.permutation(len(scene.objects))[:2])
    text, answer, asked = _ASKERS[kind](scene, target, other, rng)
    return Question(kind, text, answer, tuple(item.box for item in asked))


_Asked = tuple[str, str, tuple[Item, ...]]


def _colour(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    return f"what colour is the {target.glyph} on?", target.colour, (target,)


def _shape(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    return f"what shape is {target.colour}?", target.shape, (target,)


def _digit(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    return f"what digit is on the {target.colour} shape?", target.glyph, (target,)


def _shape_by_digit(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    return f"what shape is the {target.glyph} on?", target.shape, (target,)


def _where(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    return f"where is the {target.colour} shape?", " ".join(target.place), (target,)


def _two_digits(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    text = f"what digits are on the {target.colour} shape and the {other.colour} shape?"
    return text, f"{target.glyph} {other.glyph}", (target, other)


def _same_shape(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    """Yes half of the time, if any two objects of the scene are alike."""
    alike = rng.random() < 0.5
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b and (a.shape == b.shape) == alike]
    if pairs:
        target, other = pairs[rng.integers(len(pairs))]
    answer = "yes" if target.shape == other.shape else "no"
    return f"are the {target.colour} and the {other.colour} shape the same shape?", answer, (target, other)


def _count(scene: Scene, target: Item, other: Item, rng: np.random.Generator) -> _Asked:
    """Every number that occurs is the answer equally often; distractors count."""
    alike = {shape: tuple(item for item in scene.items if item.shape == shape) for shape in SHAPES}
    number = rng.choice(sorted({len(items) for items in alike.values()} - {0}))
    shape = str(rng.choice([shape for shape, items in alike.items() if len(items) == number]))
    return f"how many {shape} shapes are there?", str(number), alike[shape]


_ASKERS: dict[str, Callable[[Scene, Item, Item, np.random.Generator], _Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "digit": _digit,
    "shape_by_digit": _shape_by_digit,
    "where": _where,
    "two_digits": _two_digits,
    "same_shape": _same_shape,
    "count": _count,
}
KINDS = tuple(_ASKERS)
