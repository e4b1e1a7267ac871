"""Photographs as backgrounds of the scenes: those that scikit-image, scikit-learn and matplotlib bring along.

Pictures to train on and pictures to test on are different photographs. Nothing is downloaded.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageOps

from multimodal import FlowpruneError
from pipelines.data.describing import SIZE
from pipelines.data.scenes import SPLIT_SEEDS

SKIMAGE, SKLEARN, MATPLOTLIB = (
    ("skimage", "data"),
    ("sklearn", "datasets/images"),
    ("matplotlib", "mpl-data/sample_data"),
)
Photo = tuple[tuple[str, str], str]

TRAINING: tuple[Photo, ...] = (
    (MATPLOTLIB, "grace_hopper.jpg"),
    (SKLEARN, "flower.jpg"),
    (SKIMAGE, "brick.png"),
    (SKIMAGE, "camera.png"),
    (SKIMAGE, "coins.png"),
    (SKIMAGE, "grass.png"),
    (SKIMAGE, "hubble_deep_field.jpg"),
    (SKIMAGE, "ihc.png"),
    (SKIMAGE, "moon.png"),
    (SKIMAGE, "motorcycle_left.png"),
    (SKIMAGE, "motorcycle_right.png"),
    (SKIMAGE, "page.png"),
    (SKIMAGE, "retina.jpg"),
    (SKIMAGE, "text.png"),
)
TESTING: tuple[Photo, ...] = (
    (SKLEARN, "china.jpg"),
    (SKIMAGE, "astronaut.png"),
    (SKIMAGE, "chelsea.png"),
    (SKIMAGE, "coffee.png"),
    (SKIMAGE, "gravel.png"),
    (SKIMAGE, "rocket.jpg"),
)
SMALLEST_CROP = 0.4


def photo_background(split: str, index: int) -> Image.Image:
    """A random square of a random photograph, flipped half of the time; the same for the same scene.

    Raises:
        FlowpruneError: the photographs are not installed.
    """
    rng = np.random.default_rng([SPLIT_SEEDS[split], index, SIZE])  # the scene's own draws are [split, index]
    names = TRAINING if split == "train" else TESTING
    photo = _opened(*names[rng.integers(len(names))])
    side = int(min(photo.size) * rng.uniform(SMALLEST_CROP, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in photo.size)
    crop = photo.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop


@cache
def _opened(place: tuple[str, str], name: str) -> Image.Image:
    package, folder = place
    try:
        with (files(package) / folder / name).open("rb") as file:
            return Image.open(file).convert("RGB")
    except (ImportError, FileNotFoundError) as error:
        raise FlowpruneError(
            f"{package} with its photograph {name} is missing: run pip install 'flowprune[dino]', or use data=scenes."
        ) from error
