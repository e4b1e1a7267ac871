"""Data sources: what is read is what was written, the parts never overlap, and what is broken is named."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from written_folder import write_folder

from multimodal import FlowpruneError
from pipelines.data import Sample, data_digest, load_samples
from pipelines.data.folder import read_folder
from pipelines.data.scenes import scenes
from pipelines.settings import Columns, DataSettings

AS_IT_IS = {"score": "exact", "system": None, "prefix": None, "suffix": None, "template": {}}


def data(source: str = "folder", path: object = None, columns: dict | None = None, **changes) -> DataSettings:
    settings = {"calibration": 4, "heldout": 5, "split": "train", "subset": None, "data_files": None}
    return DataSettings(
        source=source,
        path=None if path is None else str(path),
        columns=Columns(**(columns or {})),
        **(AS_IT_IS | settings | changes),
    )


def picture(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def made(number: int) -> list[Sample]:
    return [
        Sample.asking(
            picture(n, (8 + n, 7)), f"What is nº {n}? \u2028 yes", None if n % 3 == 2 else str(n), kind=f"k{n % 2}"
        )
        for n in range(number)
    ]


def same(found: Sample, expected: Sample) -> bool:
    facts = [(s.question, s.answer, s.kind, s.image.size, s.image.mode, s.image.tobytes()) for s in (found, expected)]
    return facts[0] == facts[1]


def questions(samples: list[Sample]) -> list[str]:
    return [sample.question for sample in samples]


def test_what_is_written_is_read_back(tmp_path):
    samples = made(5)
    write_folder(samples, tmp_path / "new")
    found = read_folder(str(tmp_path / "new"), Columns())
    assert len(found) == 5 and all(map(same, found, samples))


def test_scenes_written_out_are_read_back(tmp_path):
    samples = list(scenes("calibration", 6))
    write_folder(samples, tmp_path)
    found = read_folder(str(tmp_path), Columns())
    assert all(map(same, found, samples)) and len(found) == 6


def write_row(folder: Path, text: str | bytes, name: str = "samples.jsonl") -> None:
    picture(0).save(folder / "good.png")
    text = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(b'{"image": "good.png", "question": "What?"}\n' + text)


def row(**fields) -> str:
    return json.dumps({"image": "good.png", "question": "What?"} | fields)


def test_images_of_every_mode_and_answers_of_every_type_are_read(tmp_path):
    for mode in ("L", "RGBA", "P", "1", "I;16", "CMYK"):
        image = Image.new(mode, (6, 5))
        image.save(tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}")
    names = sorted(path.name for path in tmp_path.iterdir())
    lines = [json.dumps({"image": name, "question": "¿Qué?", "answer": 3}, ensure_ascii=False) for name in names]
    (tmp_path / "x.jsonl").write_bytes(("\ufeff" + "\r\n\r\n".join(lines)).encode())
    found = read_folder(str(tmp_path), Columns())
    assert [(s.image.mode, s.image.size, s.answer, s.question) for s in found] == [("RGB", (6, 5), "3", "¿Qué?")] * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{oops}", r"samples\.jsonl:2 is not JSON"),
        ("\n\n[1, 2]", r"samples\.jsonl:4 has no image"),
        ('{"question": "What?"}', r"samples\.jsonl:2 has no image: every row needs an image and a question"),
        (row(question=None), r"samples\.jsonl:2 has no question"),
        (row(question=" "), r"samples\.jsonl:2 has no question"),
        (row(image=7), r"samples\.jsonl:2 gives image as int: give a path, bytes, or a list of them"),
        (row(image="gone.png"), r"samples\.jsonl:2 names the image gone\.png, which is not in .*: add it or drop"),
        (row(image="."), r"samples\.jsonl:2 names the image \."),
        ('{"image": "good.png", "question": "Où?"}'.encode("latin-1"), r"samples\.jsonl is not readable UTF-8"),
    ],
)
def test_a_broken_row_is_named(text, message, tmp_path):
    write_row(tmp_path, text)
    with pytest.raises(FlowpruneError, match=message):
        read_folder(str(tmp_path), Columns())


@pytest.mark.parametrize("kind", ["empty", "text", "truncated"])
def test_a_broken_image_is_named(kind, tmp_path):
    write_row(tmp_path, row(image="bad.png"))
    picture(1, (200, 200)).save(tmp_path / "bad.png")
    whole = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes({"empty": b"", "text": b"not an image", "truncated": whole[:5000]}[kind])
    with pytest.raises(FlowpruneError, match=r"samples\.jsonl:2: the image .*bad\.png cannot be read: replace it"):
        [sample.image for sample in read_folder(str(tmp_path), Columns())]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"data\.path .* is not a folder: give one with image files and a \.jsonl file"),
        ({}, r"holds 0 \.jsonl or \.json files: put exactly one there"),
        ({"a.jsonl": "", "b.json": ""}, r"holds 2 \.jsonl or \.json files \(a\.jsonl, b\.json\)"),
        ({"a.jsonl": "\n \n"}, r"a\.jsonl is empty: write one JSON object a line"),
    ],
)
def test_a_folder_without_rows_is_refused(files, message, tmp_path):
    folder = tmp_path / "folder"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(FlowpruneError, match=message):
        read_folder(str(folder), Columns())


@pytest.mark.parametrize(("rows", "calibration", "expected"), [(12, 4, (4, 5)), (6, 4, (3, 3)), (2, 4, (1, 1))])
def test_parts_never_overlap_and_are_drawn_the_same_again(rows, calibration, expected, tmp_path):
    write_folder(made(rows), tmp_path)
    settings = data(path=tmp_path, calibration=calibration)
    parts = [questions(load_samples(settings, part, seed=3)) for part in ("calibration", "heldout")]
    assert tuple(map(len, parts)) == expected
    assert len(set(parts[0] + parts[1])) == sum(expected)
    assert [questions(load_samples(settings, part, seed=3)) for part in ("calibration", "heldout")] == parts
    if rows == 12:
        assert questions(load_samples(settings, "calibration", seed=4)) != parts[0]
        more = data(path=tmp_path, calibration=calibration, heldout=2)
        assert questions(load_samples(more, "heldout", seed=3)) == parts[1][:2]


def test_one_row_is_too_few(tmp_path):
    write_folder(made(1), tmp_path)
    with pytest.raises(FlowpruneError, match="has 1 samples: a search needs at least 2"):
        load_samples(data(path=tmp_path), "calibration", 0)


def test_scene_parts():
    found = {
        name: load_samples(data("scenes", calibration=3, heldout=3, split=split), part, 0)
        for name, split, part in (
            ("calibration", "heldout", "calibration"),
            ("heldout", "heldout", "heldout"),
            ("test", "test", "heldout"),
        )
    }
    for name, samples in found.items():
        assert all(map(same, samples, scenes(name, 3)))
    with pytest.raises(FlowpruneError, match=r"data\.split is 'train': the scenes have heldout and test"):
        load_samples(data("scenes", split="train"), "heldout", 0)


def test_a_source_without_a_path_is_refused():
    with pytest.raises(FlowpruneError, match=r"data\.path is missing: say where the folder is"):
        load_samples(data(), "heldout", 0)


def test_digest_sees_images_and_questions_and_their_order():
    samples = made(3)
    changed = [*samples[:2], Sample.asking(samples[2].image, "else")]
    repainted = [*samples[:2], Sample.asking(picture(99, samples[2].image.size), samples[2].question)]
    digests = [data_digest(s) for s in (samples, samples[::-1], changed, repainted, samples[:2])]
    assert len(set(digests)) == 5 and data_digest(made(3)) == digests[0]


@pytest.fixture
def parquet(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    samples = made(9)
    table = {
        "picture": [sample.image for sample in samples],
        "prompt": questions(samples),
        "answer": list(range(9)),
    }
    features = datasets.Features(
        picture=datasets.Image(), prompt=datasets.Value("string"), answer=datasets.Value("int64")
    )
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def from_parquet(file: Path, **columns) -> DataSettings:
    columns = {"image": "picture", "question": "prompt"} | columns
    return data("datasets", "parquet", columns, data_files=str(file))


def test_rows_of_a_local_data_set(parquet):
    expected = {sample.question: sample for sample in made(9)}
    found = [s for part in ("calibration", "heldout") for s in load_samples(from_parquet(parquet), part, 0)]
    assert {sample.question for sample in found} == set(expected) and len(found) == 9
    for sample in found:
        assert sample.image.tobytes() == expected[sample.question].image.tobytes()
        assert sample.answer == str(list(expected).index(sample.question)) and sample.kind is None


def test_rows_of_an_image_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "images"
    folder.mkdir()
    lines = []
    for n in range(4):
        picture(n).save(folder / f"{n}.png")
        lines.append(json.dumps({"file_name": f"{n}.png", "question": f"q{n}", "kind": "k"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = load_samples(data("datasets", folder), "calibration", 0)
    assert len(found) == 2 and {sample.kind for sample in found} == {"k"} and {s.answer for s in found} == {None}
    assert all(s.image.tobytes() == picture(int(s.question[1:])).tobytes() for s in found)


def test_what_a_data_set_lacks_is_named(parquet, tmp_path):
    with pytest.raises(FlowpruneError, match=r"no column 'image' but \['picture', 'prompt', 'answer'\]: set data\.col"):
        load_samples(from_parquet(parquet, image="image"), "calibration", 0)
    with pytest.raises(FlowpruneError, match=r"Row \d of parquet gives answer as int: give a path, bytes"):
        load_samples(from_parquet(parquet, image="answer"), "calibration", 0)
    for settings in (
        data("datasets", tmp_path / "gone"),
        data("datasets", "parquet", data_files=str(tmp_path / "gone.parquet")),
        from_parquet(parquet).model_copy(update={"split": "dev"}),
    ):
        with pytest.raises(
            FlowpruneError, match=r"datasets cannot load .*: check data\.path, data\.split and data\.data_files"
        ):
            load_samples(settings, "calibration", 0)
