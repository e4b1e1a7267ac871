"""Drawn scenes with questions about a small local part: what the shipped model is trained and tested on.

A scene holds 2 to 5 objects (coloured shapes, each carrying a digit; colours and shapes are unique in a scene) and
distractors that look alike but are never asked about: grey shapes without a digit, letters, patches of repeated
texture and clutter, on a textured background. A scene is a plain description first (``describe``); drawing it
(``render``) and asking about it (``ask``) are separate, so that a decoder can be trained without pictures.

Everything is a function of (split, index): the same pair always gives the same scene, picture and question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.data.sample import Sample

SIZE = 224
SPLIT_SEEDS = {"train": 1, "calibration": 2, "heldout": 3, "test": 4}
COLOURS = {
    "red": (215, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (245, 230, 45),
    "green": (35, 160, 55),
    "cyan": (50, 215, 225),
    "blue": (35, 65, 215),
    "purple": (130, 45, 180),
    "pink": (255, 130, 190),
}
GREY = "grey"
DIGITS = tuple("0123456789")
LETTERS = tuple("ehkrwx")
ROWS = ("top", "bottom")
COLUMNS = ("left", "right")
OBJECT_COUNTS = (2, 5)
OBJECT_SIZES = (32, 42)
LETTER_COUNTS = (6, 9)
LETTER_SIZES = (20, 28)
CELL, JITTER = 14, 2


def _regular(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """The corners of a regular polygon or star in the unit square, first corner up: [corners, 2]."""
    angles = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


HALF_CROSS = ((-1, -0.4), (-0.4, -0.4), (-0.4, -1), (0.4, -1), (0.4, -0.4), (1, -0.4))
OUTLINES = {
    "circle": _regular(28),
    "square": np.array([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]),
    "triangle": np.array([(0, -1), (1, 0.85), (-1, 0.85)]),
    "star": _regular(10, (1.0, 0.52)),
    "cross": np.array([(sign * x, sign * y) for sign in (1, -1) for x, y in HALF_CROSS]),
    "diamond": np.array([(0, -1), (0.85, 0), (0, 1), (-0.85, 0)]),
}


@dataclass(frozen=True)
class Item:
    """An object or a distractor: ``shape`` is empty for a letter, ``glyph`` for a grey shape."""

    colour: str
    shape: str
    glyph: str
    centre: tuple[int, int]
    size: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels."""
        (x, y), half = self.centre, self.size // 2
        return x - half, y - half, x + half, y + half

    @property
    def place(self) -> tuple[str, str]:
        """The row and the column word of the quadrant."""
        x, y = self.centre
        return ROWS[y >= SIZE // 2], COLUMNS[x >= SIZE // 2]


@dataclass(frozen=True)
class Scene:
    """What a picture shows; ``texture_seed`` fixes the background and the clutter."""

    objects: tuple[Item, ...]
    distractors: tuple[Item, ...]
    background: str
    texture_seed: int


@dataclass(frozen=True)
class Question:
    """A question about a scene, its answer and the boxes that hold the evidence."""

    kind: str
    text: str
    answer: str
    regions: tuple[tuple[int, int, int, int], ...]


def scenes(split: str, count: int, start: int = 0) -> Iterator[Sample]:
    """Samples ``start`` to ``start + count`` of a split, one question a scene, the kinds taking turns."""
    for index in range(start, start + count):
        rng = scene_rng(split, index)
        scene = describe(rng)
        question = ask(scene, KINDS[index % len(KINDS)], rng)
        yield Sample(render(scene), question.text, question.answer, question.kind, question.regions)


def scene_rng(split: str, index: int) -> np.random.Generator:
    """The generator that fixes everything about one scene."""
    if split not in SPLIT_SEEDS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLIT_SEEDS)}")
    return np.random.default_rng([SPLIT_SEEDS[split], index])


# ---- describing -----------------------------------------------------------------------------------------------


def describe(rng: np.random.Generator, letters: tuple[int, int] = LETTER_COUNTS) -> Scene:
    """Draw a scene description with ``letters`` (fewest, most) letters in the background."""
    count = int(rng.integers(*OBJECT_COUNTS, endpoint=True))
    greys = int(rng.integers(1, min(2, len(OUTLINES) - count) + 1))
    shapes = rng.permutation(list(OUTLINES))[: count + greys].tolist()
    colours = rng.permutation(list(COLOURS))[:count].tolist() + [GREY] * greys
    glyphs = rng.choice(DIGITS, count).tolist() + [""] * greys
    strays = np.resize(rng.permutation(LETTERS), rng.integers(*letters, endpoint=True)).tolist()

    sizes = rng.integers(*OBJECT_SIZES, count + greys, endpoint=True).tolist()
    sizes += rng.integers(*LETTER_SIZES, len(strays), endpoint=True).tolist()
    centres = _place(rng, sizes)
    looks = [*zip(colours, shapes, glyphs, strict=True), *((GREY, "", letter) for letter in strays)]
    items = tuple(Item(*look, centre, size) for look, centre, size in zip(looks, centres, sizes, strict=True))
    return Scene(items[:count], items[count:], str(rng.choice(list(BACKGROUNDS))), int(rng.integers(2**32)))


def _place(rng: np.random.Generator, sizes: list[int]) -> list[tuple[int, int]]:
    """Centres near those of a grid's cells, inside and without overlap, by rejection; starts over when that fails.

    The grid is there for the tower's sake: with centres on any pixel it needs many times the training.
    """
    centres: list[tuple[int, int]] = []
    tries = 0
    while len(centres) < len(sizes):
        size = sizes[len(centres)]
        x, y = (rng.integers(SIZE // CELL, size=2) * CELL + CELL // 2 + rng.integers(-JITTER, JITTER + 1, 2)).tolist()
        inside = size // 2 <= min(x, y) and max(x, y) <= SIZE - size // 2
        apart = all(
            max(abs(x - a), abs(y - b)) > (size + other) // 2 for (a, b), other in zip(centres, sizes, strict=False)
        )
        if inside and apart:
            centres.append((x, y))
        tries += 1
        if tries % 500 == 0:
            centres.clear()
    return centres


# ---- asking ---------------------------------------------------------------------------------------------------


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """A question of the given kind about a random object of the scene."""
    target = scene.objects[rng.integers(len(scene.objects))]
    text, answer, asked = _ASKERS[kind](scene, target, rng)
    return Question(kind, text, answer, tuple(item.box for item in asked))


_Asked = tuple[str, str, tuple[Item, ...]]


def _colour(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    return f"what colour is the {target.shape}?", target.colour, (target,)


def _shape(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    return f"what shape is {target.colour}?", target.shape, (target,)


def _digit_by_colour(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    return f"what digit is on the {target.colour} shape?", target.glyph, (target,)


def _digit_by_shape(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    return f"what digit is on the {target.shape}?", target.glyph, (target,)


def _existence(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    if rng.random() < 0.5:
        return f"is there a {target.colour} shape?", "yes", (target,)
    absent = sorted(set(COLOURS) - {item.colour for item in scene.objects})
    return f"is there a {rng.choice(absent)} shape?", "no", ()


def _where(scene: Scene, target: Item, rng: np.random.Generator) -> _Asked:
    name = f"{target.colour} shape" if rng.random() < 0.5 else target.shape
    return f"where is the {name}?", " ".join(target.place), (target,)


_ASKERS: dict[str, Callable[[Scene, Item, np.random.Generator], _Asked]] = {
    "colour": _colour,
    "shape": _shape,
    "digit_by_colour": _digit_by_colour,
    "digit_by_shape": _digit_by_shape,
    "existence": _existence,
    "where": _where,
}
KINDS = tuple(_ASKERS)


# ---- drawing --------------------------------------------------------------------------------------------------


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 224 x 224."""
    rng = np.random.default_rng(scene.texture_seed)
    texture = BACKGROUNDS[scene.background](rng)
    _repeat_patch(texture, rng)
    levels = (texture * rng.uniform(50, 90)).astype(np.uint8) + rng.integers(0, 15, texture.shape, np.uint8)
    tint = (rng.uniform(55, 130) + rng.uniform(-18, 18, 3)).astype(np.uint8)
    image = Image.merge("RGB", [Image.fromarray(levels + channel) for channel in tint])
    draw = ImageDraw.Draw(image)
    _clutter(draw, rng)
    for item in scene.distractors + scene.objects:
        _draw_item(draw, item, rng)
    return image


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, rng: np.random.Generator) -> None:
    """A filled outline with its glyph in black or white on top, or a letter alone."""
    middle = np.array(item.centre, float)
    grey = np.full(3, rng.choice([rng.uniform(20, 60), rng.uniform(195, 235)]))
    fill = grey if item.colour == GREY else np.array(COLOURS[item.colour]) + rng.uniform(-15, 15, 3)
    rgb = tuple(int(v) for v in fill.clip(0, 255))
    if not item.shape:
        draw.text(tuple(middle), item.glyph.upper(), fill=rgb, font=_font(item.size), anchor="mm", stroke_width=1)
        return
    outline = OUTLINES[item.shape]
    draw.polygon([tuple(p) for p in middle + outline * item.size / 2], fill=rgb)
    if item.glyph:
        ink = (0, 0, 0) if np.dot(fill, (0.3, 0.59, 0.11)) > 120 else (255, 255, 255)
        spot = middle + outline.mean(axis=0) * item.size / 2
        font = _font(int(item.size * 0.58))
        draw.text(tuple(spot), item.glyph, fill=ink, font=font, anchor="mm", stroke_width=0.6)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _clutter(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    """Short grey strokes."""
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(0, SIZE, 2)
        dx, dy = rng.uniform(-18, 18, 2)
        draw.line((x, y, x + dx, y + dy), fill=(int(rng.uniform(30, 220)),) * 3, width=int(rng.integers(1, 3)))


def _repeat_patch(texture: np.ndarray, rng: np.random.Generator) -> None:
    """Copy one random tile of contrast into a few places of the texture, in place: [224, 224] in 0..1."""
    tile = np.kron(rng.random((6, 6)), np.ones((4, 4)))
    for _ in range(rng.integers(1, 4)):
        y, x = rng.integers(0, SIZE - len(tile), 2)
        texture[y : y + len(tile), x : x + len(tile)] = tile


def _gradient(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return (ramp * np.cos(angle) + ramp[:, None] * np.sin(angle)) / 2.9 + 0.5


def _noise(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(5, 24))
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.array(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return np.sin(_gradient(rng) * rng.uniform(20, 90)) / 2 + 0.5


def _checks(rng: np.random.Generator) -> np.ndarray:
    line = np.arange(SIZE) // rng.integers(8, 30) % 2
    return (line ^ line[:, None]).astype(np.float32)


BACKGROUNDS = {"gradient": _gradient, "noise": _noise, "stripes": _stripes, "checks": _checks}
