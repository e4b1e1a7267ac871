"""Pictures are read as a viewer shows them, whatever file or data set they come from, and only when needed."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, ImageFile
from test_data import data

from multimodal import FlowpruneError
from pipelines.data import data_digest, load_samples
from pipelines.data.pictures import as_shown, stored

CORNERS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [90, 90, 90], [200, 200, 0]]], dtype=np.uint8)
UPRIGHT = {  # what a viewer does with the EXIF orientation, after the standard's table
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.transpose(1, 0, 2),
    6: np.rot90(CORNERS, -1),
    7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNERS, 1),
}


def saved(folder: Path, name: str, image: Image.Image, **options) -> Path:
    image.save(folder / name, **options)
    return folder / name


def pixels(path: Path) -> list:
    return np.asarray(stored(path, "here").shown()).tolist()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = saved(tmp_path, "x.png", Image.fromarray(CORNERS), exif=exif)
    assert pixels(path) == UPRIGHT[orientation].tolist()


def greys(values: list, kind: type) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=kind))


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (greys([0, 257, 12850, 65535], np.uint16), "x.png", [0, 1, 50, 255]),
        (greys([0, 257, 12850, 65535], np.int32), "x.tiff", [0, 1, 50, 255]),
        (greys([-100, 0, 100, 155], np.int32), "x.tiff", [0, 100, 200, 255]),
        (greys([0, 0.2, 0.4, 1], np.float32), "x.tiff", [0, 51, 102, 255]),
        (greys([-1, 0, 1, 4], np.float32), "x.tiff", [0, 51, 102, 255]),
        (greys([7, 7, 7, 7], np.float32), "x.tiff", [0, 0, 0, 0]),
        (greys([0, 1, 0, 1], np.uint8).point(lambda v: 255 * v).convert("1"), "x.png", [0, 255, 0, 255]),
    ],
    ids=["16 bits", "16 of 32 bits", "more than 16 bits", "float", "float beyond 1", "one float", "one bit"],
)
def test_greys_of_any_depth_become_eight_bits(image: Image.Image, name: str, expected: list, tmp_path: Path) -> None:
    assert pixels(saved(tmp_path, name, image)) == [[[value] * 3 for value in expected]]


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 150, 0])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)), {}, [[255] * 3, [204] * 3]),
        (palette(), {"transparency": 0}, [[255] * 3, [0, 150, 0]]),
        (palette(), {}, [[200, 0, 0], [0, 150, 0]]),
        (greys([7, 8], np.uint8), {"transparency": 7}, [[255] * 3, [8] * 3]),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, [[255] * 3] * 2),
        (Image.merge("LA", [greys([9, 9], np.uint8), greys([0, 255], np.uint8)]), {}, [[255] * 3, [9] * 3]),
    ],
    ids=["alpha", "palette, transparent", "palette", "transparent grey", "transparent colour", "grey and alpha"],
)  # fmt: skip
def test_what_is_transparent_is_on_white(image: Image.Image, options: dict, expected: list, tmp_path: Path) -> None:
    assert pixels(saved(tmp_path, "x.png", image, **options)) == [expected]


def test_inks_and_animations(tmp_path: Path) -> None:
    inks = saved(tmp_path, "inks.tiff", Image.new("CMYK", (1, 1), (0, 255, 255, 0)))
    assert pixels(inks) == [[[255, 0, 0]]]
    first, second = Image.new("RGB", (1, 1), (255, 0, 0)), Image.new("RGB", (1, 1), (0, 0, 255))
    moving = saved(tmp_path, "moving.gif", first, save_all=True, append_images=[second])
    assert pixels(moving) == [[[255, 0, 0]]]


def test_a_data_set_shows_what_a_folder_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    saved(folder, "turned.png", Image.fromarray(CORNERS), exif=exif)
    saved(folder, "deep.png", greys([0, 12850], np.uint16))
    saved(folder, "clear.png", Image.new("RGBA", (2, 2), (0, 0, 0, 0)))
    names = ["turned.png", "deep.png", "clear.png"]
    lines = [json.dumps({"image": name, "question": name}) for name in names]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    own = [{"image": {"bytes": (folder / n).read_bytes(), "path": None}, "question": n, "list": [n]} for n in names]
    table = datasets.Dataset.from_list(own)
    table.to_parquet(tmp_path / "structs.parquet")
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "images.parquet")
    table.map(lambda row: {"image": str(folder / row["question"])}, remove_columns="image").to_parquet(
        tmp_path / "paths.parquet"
    )

    def shown(**source) -> dict:
        found = [s for part in ("calibration", "heldout") for s in load_samples(data(**source), part, 0)]
        return {sample.question: np.asarray(sample.image).tolist() for sample in found}

    expected = shown(path=folder)
    assert set(expected) == set(names) and expected["clear.png"] == [[[255] * 3] * 2] * 2
    assert expected["turned.png"] == UPRIGHT[6].tolist() and expected["deep.png"] == [[[0] * 3, [50] * 3]]
    for kind in ("structs", "images", "paths"):
        found = shown(source="datasets", path="parquet", data_files=str(tmp_path / f"{kind}.parquet"))
        assert found == expected, kind


def test_pictures_are_decoded_when_needed_and_keys_come_from_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"{n}.png" for n in range(4)]
    for n, name in enumerate(names):
        saved(tmp_path, name, Image.new("RGB", (8, 8), (n, n, n)))
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"image": n, "question": n}) for n in names))
    rows = [{"image": {"bytes": (tmp_path / n).read_bytes(), "path": n}, "question": n} for n in names]
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "rows.parquet")
    sources = [
        data(path=tmp_path),
        data("datasets", "parquet", data_files=str(tmp_path / "rows.parquet")),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        found = [load_samples(source, "calibration", 0) for source in sources]
        before = [data_digest(samples) for samples in found]
        assert before == [data_digest(load_samples(source, "calibration", 0)) for source in sources]
    assert all(sample.image.size == (8, 8) for samples in found for sample in samples)
    asked = found[0][0].question
    saved(tmp_path, asked, Image.new("RGB", (8, 8), (200, 0, 0)))
    assert data_digest(load_samples(sources[0], "calibration", 0)) != before[0]


def test_a_picture_from_a_phone_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(FlowpruneError, match=r"here: the image .*x\.HEIC cannot be read: save it as JPEG"):
        stored(tmp_path / "x.HEIC", "here").shown()


def test_what_is_there_already_is_not_changed() -> None:
    image = Image.fromarray(CORNERS)
    assert np.asarray(as_shown(image)).tolist() == CORNERS.tolist()
