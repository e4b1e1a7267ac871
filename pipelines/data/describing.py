"""What a drawn scene holds, as a plain description that can be learnt from without a picture.

A scene holds 8 to 10 objects (coloured shapes, each carrying a digit; colours and digits are unique in a scene) among
distractors (black or white shapes carrying a letter) on two grounds, a plain and a busy one, that meet in a line.
"""

from dataclasses import dataclass

import numpy as np

SIZE = 224
COLOURS = {
    "red": (215, 30, 35),
    "orange": (250, 135, 15),
    "yellow": (245, 230, 45),
    "green": (35, 160, 55),
    "cyan": (50, 215, 225),
    "blue": (35, 65, 215),
    "purple": (120, 40, 175),
    "pink": (255, 150, 200),
    "magenta": (235, 25, 190),
    "brown": (125, 70, 30),
}
GREYS = {"black": (30, 30, 30), "white": (225, 225, 225)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
DIGITS = tuple("0123456789")
LETTERS = tuple("ehkrwx")
ROWS = ("top", "bottom")
COLUMNS = ("left", "right")
PLAIN = ("gradient", "cloud")
BUSY = ("stripes", "checks", "grain")
SHADES = {"dark": (45, 85), "bright": (150, 190)}
OBJECT_COUNTS = (8, 10)
DISTRACTOR_COUNTS = (3, 4)
ITEM_SIZES = (34, 44)
MOST_OF_A_SHAPE = 3
CELL, JITTER = 14, 2


@dataclass(frozen=True)
class Item:
    """An object, or a distractor where the colour is a grey."""

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
        return place_of(*self.centre)


@dataclass(frozen=True)
class Ground:
    """One of the two backgrounds of a scene."""

    shade: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows; ``texture_seed`` fixes everything about the drawing that no question is about.

    The second ground lies beyond the line of points p with p · (cos angle, sin angle) = offset, p from the centre.
    """

    objects: tuple[Item, ...]
    distractors: tuple[Item, ...]
    grounds: tuple[Ground, Ground]
    angle: float
    offset: float
    texture_seed: int

    @property
    def items(self) -> tuple[Item, ...]:
        """Distractors and objects."""
        return self.distractors + self.objects

    def ground_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Which ground, 0 or 1, lies at each point."""
        along = (x - SIZE / 2) * np.cos(self.angle) + (y - SIZE / 2) * np.sin(self.angle)
        return (along > self.offset).astype(int)


def place_of(x: float, y: float) -> tuple[str, str]:
    """The row and the column word of the quadrant that a point lies in."""
    return ROWS[y >= SIZE // 2], COLUMNS[x >= SIZE // 2]


def describe(
    rng: np.random.Generator,
    objects: tuple[int, int] = OBJECT_COUNTS,
    distractors: tuple[int, int] = DISTRACTOR_COUNTS,
) -> Scene:
    """Draw a scene description with (fewest, most) objects and distractors."""
    count, greys = int(rng.integers(*objects, endpoint=True)), int(rng.integers(*distractors, endpoint=True))
    colours = [*rng.permutation(list(COLOURS))[:count].tolist(), *rng.choice(list(GREYS), greys).tolist()]
    glyphs = [*rng.permutation(DIGITS)[:count].tolist(), *rng.permutation(LETTERS)[:greys].tolist()]
    shapes = rng.permutation(SHAPES * MOST_OF_A_SHAPE)[: count + greys].tolist()
    sizes = rng.integers(*ITEM_SIZES, count + greys, endpoint=True).tolist()
    looks = zip(colours, shapes, glyphs, _place(rng, sizes), sizes, strict=True)
    items = tuple(Item(*look) for look in looks)
    textures = rng.permutation([rng.choice(PLAIN), rng.choice(BUSY)]).tolist()
    first, second = (Ground(str(rng.choice(list(SHADES))), texture) for texture in textures)
    angle, offset = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-40, 40))
    return Scene(items[:count], items[count:], (first, second), angle, offset, int(rng.integers(2**32)))


def _place(rng: np.random.Generator, sizes: list[int]) -> list[tuple[int, int]]:
    """Centres near those of a grid's cells, inside and without overlap; starts over where no room is left.

    The grid is there for the tower's sake: with centres on any pixel it needs many times the training.
    """
    grid = np.mgrid[CELL // 2 : SIZE : CELL, CELL // 2 : SIZE : CELL].reshape(2, -1).T
    centres: list[tuple[int, int]] = []
    while len(centres) < len(sizes):
        size = sizes[len(centres)]
        spots = grid + rng.integers(-JITTER, JITTER + 1, 2)
        free = (spots.min(axis=1) >= size // 2) & (spots.max(axis=1) <= SIZE - size // 2)
        for centre, other in zip(centres, sizes, strict=False):
            free &= np.abs(spots - centre).max(axis=1) > (size + other) // 2
        if free.any():
            x, y = spots[rng.choice(np.flatnonzero(free))].tolist()
            centres.append((x, y))
        else:
            centres.clear()
    return centres
