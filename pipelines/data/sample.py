"""One (image, question) pair, with what is known about it."""

from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """What every data source yields.

    Args:
        image: the picture, RGB.
        question: the user's text, without image placeholders or chat markup.
        answer: the known answer, or None.
        kind: the kind of question (for example ``colour``), or None.
        regions: boxes (left, top, right, bottom) in pixels of what the question asks about; empty when unknown.
    """

    image: Image.Image
    question: str
    answer: str | None = None
    kind: str | None = None
    regions: tuple[tuple[int, int, int, int], ...] = field(default=())
