"""Pictures as a viewer shows them, each decoded when it is looked at and not before."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from multimodal import FlowpruneError

BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError)  # what Pillow raises
PHONES = {".heic", ".heif"}


def as_shown(image: Image.Image) -> Image.Image:
    """An image as RGB, as a viewer shows it: turned upright, deep greys scaled, what is transparent on white, the first
    frame of an animation."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Greys ``[rows, columns]``: 16 bits by their range, floats in [0, 1] by that, anything wider by its own."""
    deep = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = float(deep.min()), float(deep.max())
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if low >= 0 and high <= top:
        low, high = 0.0, top
    return np.rint(255 * (deep - low) / ((high - low) or 1)).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that is decoded whenever it is asked for, so that many large ones need no memory.

    Two are the same if their keys are.

    Args:
        shown: gives it, as RGB.
        key: gives a digest of what it is made from.
        check: says whether it can be a picture at all, without decoding it.
    """

    shown: Callable[[], Image.Image]
    key: Callable[[], str]
    check: Callable[[], object] = lambda: None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def changed(self, change: Callable[[Image.Image], Image.Image], name: str) -> "Picture":
        """The same, changed in a way that has a name."""
        return Picture(lambda: change(self.shown()), lambda: f"{self.key()} {name}", self.check)


def drawn(image: Image.Image) -> Picture:
    """A picture that is there already."""
    return Picture(partial(as_shown, image), lambda: _digest(repr(image.size).encode() + image.tobytes()))


def stored(
    source: Path | Callable[[], bytes], where: str, name: str = "", key: Callable[[], str] | None = None
) -> Picture:
    """A picture in a file, or in bytes that are fetched when needed.

    Args:
        source: the file, or what gives its bytes.
        where: it is used, for messages.
        name: of the picture in messages; a file has its own.
        key: gives a digest; None: of the bytes.
    """
    name = str(source) if isinstance(source, Path) else name
    return Picture(
        partial(_read, source, where, name, as_shown),
        key or partial(file_digest, source, where),
        partial(_read, source, where, name, lambda image: image),
    )


def file_digest(source: Path | Callable[[], bytes], where: str) -> str:
    """A digest of a file's bytes.

    Raises:
        FlowpruneError: it cannot be read.
    """
    if not isinstance(source, Path):
        return _digest(source())
    try:
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FlowpruneError(f"{where}: {source} cannot be read ({error.strerror}): replace it.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(
    source: Path | Callable[[], bytes], where: str, name: str, use: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    opened = source if isinstance(source, Path) else BytesIO(source())
    try:
        with Image.open(opened) as image:
            return use(image)
    except BROKEN as error:
        fix = "save it as JPEG" if Path(name).suffix.lower() in PHONES else "replace it or drop the row"
        raise FlowpruneError(f"{where}: the image {name} cannot be read: {fix}.") from error
