"""Photographs as backgrounds: the scene stays the same, training never sees the test's photographs."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

import pipelines.data.photos
from multimodal import FlowpruneError
from pipelines.data import load_samples
from pipelines.data.photos import TESTING, TRAINING, photo_background
from pipelines.data.scenes import scenes
from pipelines.settings import Columns, DataSettings

INSTALLED = all(importlib.util.find_spec(name) for name in ("skimage", "sklearn"))
installed = pytest.mark.skipif(not INSTALLED, reason="the photographs are not installed: pip install 'flowprune[dino]'")
PHOTOS = DataSettings(
    source="photos",
    path=None,
    calibration=4,
    heldout=4,
    split="heldout",
    subset=None,
    data_files=None,
    columns=Columns(),
    score="exact",
    system=None,
    prefix=None,
    suffix=None,
    template={},
)


@installed
def test_every_photograph_opens() -> None:
    assert not set(TRAINING) & set(TESTING)
    for photo in (*TRAINING, *TESTING):
        assert min(pipelines.data.photos._opened(*photo).size) >= 150, photo


@installed
def test_only_the_ground_differs_from_the_drawn_scene() -> None:
    photos = load_samples(PHOTOS, "heldout", seed=0)
    drawn = list(scenes("heldout", 4))
    for photo, plain in zip(photos, drawn, strict=True):
        assert (photo.question, photo.answer, photo.regions) == (plain.question, plain.answer, plain.regions)
        assert photo.image.size == plain.image.size and photo.image.tobytes() != plain.image.tobytes()
    assert photos[0].image.tobytes() == load_samples(PHOTOS, "heldout", seed=1)[0].image.tobytes()


@installed
def test_backgrounds_are_squares_of_whole_photographs() -> None:
    crops = [photo_background("train", index) for index in range(8)]
    assert {crop.size for crop in crops} == {(224, 224)} and len({crop.tobytes() for crop in crops}) == 8
    assert all(np.asarray(crop).std() > 5 for crop in crops)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> Image.Image:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(pipelines.data.photos, "files", absent)
    pipelines.data.photos._opened.cache_clear()
    with pytest.raises(FlowpruneError, match=r"pip install 'flowprune\[dino\]'"):
        load_samples(PHOTOS, "heldout", seed=0)
