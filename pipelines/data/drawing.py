"""Draws described scenes with Pillow alone.

Neither contrast nor noise nor edges give the objects away: the busy ground has more contrast than they have, the plain
one less, and grain lies over everything.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.data.describing import COLOURS, GREYS, PLAIN, SHADES, SIZE, Ground, Item, Scene


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
GRAIN = 14
CONTRAST = {"plain": (10, 40), "busy": (150, 230)}


def render(scene: Scene, background: Image.Image | None = None) -> Image.Image:
    """The picture of a scene, RGB, 224 x 224; on the given background picture, if any, instead of its own grounds."""
    rng = np.random.default_rng(scene.texture_seed)
    image = background.convert("RGB").resize((SIZE, SIZE)) if background else _grounds(scene, rng)
    draw = ImageDraw.Draw(image)
    for item in scene.items:
        _draw_item(draw, item, rng)
    grain = rng.integers(-GRAIN, GRAIN, (SIZE, SIZE, 1), np.int16, endpoint=True)
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _draw_item(draw: ImageDraw.ImageDraw, item: Item, rng: np.random.Generator) -> None:
    """A filled outline with its glyph on top, darker or brighter than the fill by about half."""
    middle = np.array(item.centre, float)
    fill = np.array({**COLOURS, **GREYS}[item.colour]) + rng.uniform(-12, 12, 3)
    outline = OUTLINES[item.shape]
    draw.polygon([tuple(p) for p in middle + outline * item.size / 2], fill=tuple(int(v) for v in fill.clip(0, 255)))
    darker = np.dot(fill, (0.3, 0.59, 0.11)) > 110
    ink = tuple(int(v) for v in (0.45 * fill if darker else 0.45 * fill + 0.55 * 255).clip(0, 255))
    spot = middle + outline.mean(axis=0) * item.size / 2
    draw.text(tuple(spot), item.glyph, fill=ink, font=_font(int(item.size * 0.58)), anchor="mm", stroke_width=0.6)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _grounds(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Both grounds, side by side along the scene's line."""
    first, second = (_ground(ground, rng) for ground in scene.grounds)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    return Image.fromarray(np.where(scene.ground_at(x, y)[..., None] == 1, second, first))


def _ground(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """One ground over the whole picture: [224, 224, 3], 0 to 255."""
    contrast = rng.uniform(*CONTRAST["plain" if ground.texture in PLAIN else "busy"])
    tint = (rng.uniform(*SHADES[ground.shade]) + rng.uniform(-30, 30, 3)).astype(np.float32)
    texture = (TEXTURES[ground.texture](rng).astype(np.float32) - 0.5) * np.float32(contrast)
    return (texture[..., None] + tint).clip(0, 255).astype(np.uint8)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    return (ramp * np.cos(angle) + ramp[:, None] * np.sin(angle)) / 2.9 + 0.5


def _noise(cells: int, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.array(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _cloud(rng: np.random.Generator) -> np.ndarray:
    return _noise(int(rng.integers(5, 12)), rng)


def _grain(rng: np.random.Generator) -> np.ndarray:
    return _noise(int(rng.integers(40, 80)), rng)


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return np.sin(_gradient(rng) * rng.uniform(60, 120)) / 2 + 0.5


def _checks(rng: np.random.Generator) -> np.ndarray:
    line = np.arange(SIZE) // rng.integers(5, 11) % 2
    return (line ^ line[:, None]).astype(np.float32)


TEXTURES = {"gradient": _gradient, "cloud": _cloud, "stripes": _stripes, "checks": _checks, "grain": _grain}
