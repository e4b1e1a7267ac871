"""The baseline before the tower: a smaller picture instead of fewer tokens."""

from collections.abc import Callable, Sequence

from PIL import Image

from pipelines.data import Sample
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, shown_layouts

HALVINGS = 8  # of the interval in which the factor is sought
FEWER = "fewer pixels and tokens"
SAME = "fewer pixels, as many tokens: this model takes one size of picture, so it costs what unpruned does"


def downscaled(opened: OpenedModel, samples: Sequence[Sample], share: float) -> tuple[list[Sample], str]:
    """The samples with pictures that hold that share of the visual tokens.

    Where a smaller picture has fewer visual tokens, it is shrunk to the largest size that has no more than the share
    of the picture's own. Where the model takes one size only, or cannot come down to the share, the picture is shrunk
    to the side whose patches are that many, and enlarged again.

    Args:
        opened: the model.
        samples: images and questions.
        share: of the visual tokens.

    Returns:
        The samples, and what a reader must know of them.
    """
    shrunk = [_shrunk(opened, sample, share) for sample in samples]
    fewer = all(is_smaller for _, is_smaller in shrunk)
    return [sample for sample, _ in shrunk], FEWER if fewer else SAME


def _shrunk(opened: OpenedModel, sample: Sample, share: float) -> tuple[Sample, bool]:
    def smaller(factor: float) -> Sample:
        return sample.redrawn(lambda image: scaled(image, factor), f"scaled by {factor}")

    def tokens(factor: float) -> int:
        return _tokens(opened, smaller(factor))

    least = share**0.5 / 2  # tokens of a picture that is taken as it is fall with its area
    factor = largest_factor(tokens, share * _tokens(opened, sample), least)
    if factor is not None:
        return smaller(factor), True
    inputs = build_inputs(opened, [sample])
    pixels = inputs.get("pixel_values", inputs.get("pixel_values_videos"))
    taken = (pixels.shape[-1], pixels.shape[-2]) if pixels.ndim >= 4 else None
    return sample.redrawn(lambda image: blurred(image, taken or image.size, share), f"blurred to {share}"), False


def blurred(image: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    """A picture shrunk to that share of a size's area, and enlarged again to its own size."""
    width, height = (max(1, round(side * share**0.5)) for side in size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def largest_factor(tokens: Callable[[float], int], most: float, least: float) -> float | None:
    """The largest factor of a picture's sides at which it has at most so many visual tokens, by bisection.

    Args:
        tokens: visual tokens by factor; never falls as that rises.
        most: the target.
        least: the smallest factor that is tried; the largest is 1.

    Returns:
        None if even the smallest picture has more.
    """
    low, high = least, 1.0
    if tokens(low) > most:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens(middle) <= most else (low, middle)
    return low


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """A picture with its sides in that proportion, one pixel at least."""
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _tokens(opened: OpenedModel, sample: Sample) -> int:
    layouts = shown_layouts(opened.modules.geometry, build_inputs(opened, [sample]))
    return sum(layout.visual_tokens for layout in layouts)
