"""Rows as users have them: conversations, several pictures, answers of every kind, and what is broken is named."""

import base64
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from test_data import data

from multimodal import FlowpruneError
from pipelines.data import Sample, load_samples
from pipelines.data.conversations import ask
from pipelines.data.folder import read_folder
from pipelines.data.pictures import drawn
from pipelines.settings import Columns


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (level,) * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in ner").mkdir()
    for level, name in enumerate(("a.png", "b.png", "in ner/c.png")):
        grey(level).save(tmp_path / name)
    return tmp_path


def read(folder: Path, *rows: dict) -> list[Sample]:
    (folder / "rows.json").write_text(json.dumps(rows))
    return read_folder(str(folder), Columns())


def said(sample: Sample) -> list:
    """Roles and parts; a picture is its grey level."""
    return [
        (turn.role, [part if isinstance(part, str) else int(np.asarray(part.shown())[0, 0, 0]) for part in turn.parts])
        for turn in sample.turns
    ]


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


@pytest.mark.parametrize(
    ("row", "turns", "answers"),
    [
        ({"image": "a.png", "question": "What?"}, [("user", [0, "What?"])], ()),
        ({"image": "a.png", "question": "<image>\nWhat?"}, [("user", [0, "What?"])], ()),
        ({"image": ["a.png", "b.png"], "question": " Same? "}, [("user", [0, 1, "Same?"])], ()),
        (
            {"images": ["a.png", "b.png"], "question": "Is <image> like <image>?"},
            [("user", ["Is ", 0, " like ", 1, "?"])],
            (),
        ),
        ({"image": "b.png", "conversations": [human("<image>\nWhat?"), gpt("1")]}, [("user", [1, "What?"])], ("1",)),
        ({"image": "b.png", "conversations": [human("What?\n<image>")]}, [("user", ["What?", 1])], ()),
        (
            {"image": "a.png", "conversations": [human("<image>\nWhat?"), gpt("One."), human("Sure?"), gpt("Yes")]},
            [("user", [0, "What?"]), ("assistant", ["One."]), ("user", ["Sure?"])],
            ("Yes",),
        ),
        (
            {"images": ["a.png"], "system": "Be brief.", "conversations": [human("What?"), gpt("x")], "answer": "y"},
            [("system", ["Be brief."]), ("user", [0, "What?"])],
            ("y",),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image", "image": "b.png"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
                ]
            },
            [("system", ["S"]), ("user", ["Q", 1])],
            ("A",),
        ),
        (
            {
                "images": ["b.png"],
                "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}],
            },
            [("user", [1, "Q"])],
            (),
        ),
    ],
)  # fmt: skip
def test_what_is_said_and_shown(row: dict, turns: list, answers: tuple, folder: Path) -> None:
    [sample] = read(folder, row)
    assert said(sample) == turns and sample.answers == answers


def test_files_are_named_in_many_ways(folder: Path) -> None:
    whole, url = folder / "in ner/c.png", (folder / "in ner/c.png").as_uri()
    inline = "data:image/png;base64," + base64.b64encode(whole.read_bytes()).decode()
    assert "%20" in url
    values = ["in ner/c.png", str(whole), url, inline, {"path": "in ner/c.png", "bytes": None}, [{"url": url}]]
    found = read(folder, *({"image": value, "question": "What?"} for value in values))
    assert [said(sample) for sample in found] == [[("user", [2, "What?"])]] * len(values)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ([""], ()),
        (float("nan"), ()),
        (" red ", ("red",)),
        (0, ("0",)),
        (["red", "scarlet", "red"], ("red", "scarlet", "red")),
        ([{"answer": "yes", "answer_confidence": "maybe"}, {"answer": "no"}], ("yes", "no")),
        ({"text": ["x"], "answer_start": [3]}, ("x",)),
    ],
)
def test_answers(answer: object, expected: tuple, folder: Path) -> None:
    [sample] = read(folder, {"image": "a.png", "question": "What?", "answer": answer})
    assert sample.answers == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?"}, "has no image: every row needs an image and a question"),
        ({"image": "a.png", "conversations": [gpt("x")]}, "has no question"),
        ({"image": "a.png", "question": "<image>"}, "has no question"),
        ({"image": "a.png", "question": "<image> <image>?"}, "has 2 <image> in its text and names 1"),
        ({"image": ["a.png", "b.png"], "question": "<image>?"}, "has 1 <image> in its text and names 2"),
        ({"image": "https://x.org/a.png", "question": "What?"}, "names the image https.*nothing is downloaded here"),
        ({"image": "data:image/png;base64,@@", "question": "What?"}, "data: URL of its image is not base64"),
        ({"image": "d.png", "question": "What?"}, "names the image d.png, which is not in"),
        ({"image": 1.5, "question": "What?"}, "gives image as float: give a path, bytes, or a list"),
        ({"image": ["a.png", True], "question": "What?"}, "gives image as bool"),
        ({"image": {"width": 3}, "question": "What?"}, "gives image as dict"),
        ({"image": "a.png", "question": ["What?"]}, "has a turn that is no object"),
        ({"image": "a.png", "conversations": [{"from": "tool", "value": "x"}]}, "has a turn of 'tool'"),
        ({"image": "a.png", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of type 'audio'"),
        ({"image": "a.png", "question": "What?", "answer": {"score": 1}}, "has an answer of score"),
        ({"video": "gone.mp4", "question": "What?"}, "names the video gone.mp4, which is not in"),
        ({"video": ["a.png", "b.png"], "question": "What?"}, "video of single frames and no fps: add fps"),
        ({"video": "empty", "question": "What?"}, "the folder of frames holds no images"),
        ({"video": "film.mp4", "question": "What?"}, "nothing here reads .*film.mp4: run pip install torchcodec"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(row: dict, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").mkdir()
    (folder / "film.mp4").write_bytes(b"film")
    monkeypatch.setattr("pipelines.data.videos.find_spec", lambda name: None)
    with pytest.raises(FlowpruneError, match=rf"rows\.json item 2:? .*{message}"):
        for sample in read(folder, {"image": "a.png", "question": "fine?"}, row):
            assert sample.image


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image": "a.png",\n "question": "Wh', r"rows\.json:2 is not JSON"),
        ('{"image": "a.png"}', r"rows\.json holds no list: write one list of objects"),
        ("", r"rows\.json is empty"),
    ],
)
def test_a_broken_list_is_named(text: str, message: str, folder: Path) -> None:
    (folder / "rows.json").write_text(text)
    with pytest.raises(FlowpruneError, match=message):
        read_folder(str(folder), Columns())


def test_videos_of_frames_and_animations(folder: Path) -> None:
    frames = [grey(40 * n) for n in range(4)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=500)
    (folder / "film").mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / f"film/{number}.png")
    listed = [f"film/{number}.png" for number in range(4)]
    rows = [
        {"video": "moving.gif"},
        {"video": "film", "fps": 8},
        {"videos": [listed], "fps": 8},
        {"video": listed, "fps": 8},
    ]
    found = read(folder, *({**row, "question": "What?"} for row in rows))
    for sample, fps in zip(found, (2, 8, 8, 8), strict=True):
        [video] = sample.videos
        assert video.fps == fps and not sample.pictures and sample.image.getpixel((0, 0)) == (0, 0, 0)
        assert np.asarray(video.frames())[:, 0, 0].tolist() == [[40 * n] * 3 for n in range(4)]
    assert len({sample.videos[0].key() for sample in found}) == 2  # the GIF, and three ways to name the frames
    with pytest.raises(FlowpruneError, match="video of frames of several sizes"):
        grey(1).resize((3, 3)).save(folder / "film/1.png")
        found[1].videos[0].frames()


def test_a_question_of_ones_own_goes_where_it_says() -> None:
    assert said(Sample((ask("Is <image> grey?", [drawn(grey(7))], "here"),))) == [("user", ["Is ", 7, " grey?"])]
    with pytest.raises(FlowpruneError, match="here has 2 <image> in its text and names 1"):
        ask("<image><image>?", [drawn(grey(7))], "here")


@pytest.fixture
def stored_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows written as Parquet and read as a data set; the questions are numbers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def read(rows: list[dict], casts: dict | None = None, **changes) -> dict[str, Sample]:
        table = datasets.Dataset.from_list(rows)
        for name, feature in (casts or {}).items():
            table = table.cast_column(name, feature)
        table.to_parquet(tmp_path / "rows.parquet")
        source = data("datasets", "parquet", data_files=str(tmp_path / "rows.parquet"), calibration=99, **changes)
        return {s.question: s for part in ("calibration", "heldout") for s in load_samples(source, part, 0)}

    return read


def png(folder: Path, level: int) -> bytes:
    grey(level).save(folder / "x.png")
    return (folder / "x.png").read_bytes()


def test_a_data_set_with_labels_and_several_pictures(stored_rows, tmp_path: Path) -> None:
    held = [{"bytes": png(tmp_path, level), "path": None} for level in range(4)]
    rows = [{"images": held[n : n + 2], "question": f"{n}", "answer": n % 2, "kind": 1} for n in range(3)]
    names = datasets.ClassLabel(names=["cat", "dog"])
    found = stored_rows(
        rows, {"images": datasets.List(datasets.Image()), "answer": names, "kind": names}, columns={"image": "images"}
    )
    for n in range(3):
        assert said(found[f"{n}"]) == [("user", [n, n + 1, f"{n}"])]
        assert found[f"{n}"].answers == (("cat", "dog")[n % 2],) and found[f"{n}"].kind == "dog"


def test_a_data_set_of_conversations_and_columns_of_mixed_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for level in range(3):
        grey(level).save(tmp_path / f"{level}.png")
    rows = [
        {"image": "0.png", "conversations": [human("<image>\nzero"), gpt("a")]},
        {"image": ["1.png", "2.png"], "conversations": [human("<image><image>two"), gpt("b")]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = data("datasets", "json", data_files=str(tmp_path / "rows.json"))
    found = [s for part in ("calibration", "heldout") for s in load_samples(source, part, 0)]
    by_question = {sample.question: (said(sample), sample.answers) for sample in found}
    assert by_question == {"zero": ([("user", [0, "zero"])], ("a",)), "two": ([("user", [1, 2, "two"])], ("b",))}


def test_what_is_broken_in_a_data_set_is_named(stored_rows, tmp_path: Path) -> None:
    good = {"bytes": png(tmp_path, 0), "path": None}
    bad = {"bytes": b"not a picture", "path": None}
    rows = [{"image": good, "question": "0"}, {"image": bad, "question": "1"}]
    with pytest.raises(FlowpruneError, match="Row 1 of parquet: the image of image cannot be read: replace it or drop"):
        stored_rows(rows, {"image": datasets.Image()})
    with pytest.raises(FlowpruneError, match=r"parquet has no column 'label' but \[.*\]: set data\.columns"):
        stored_rows([rows[0], rows[0]], columns={"answer": "label"})
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    cut = {"bytes": (tmp_path / "noise.png").read_bytes()[:9000], "path": None}
    found = stored_rows([{"image": good, "question": "0"}, {"image": cut, "question": "1"}])
    with pytest.raises(FlowpruneError, match="Row 1 of parquet: the image of image cannot be read"):
        found["1"].image  # noqa: B018 (which is decoded here)
    (tmp_path / "cut.jsonl").write_text('{"image": "x.png", "question": "0"}\n{"image": "x.p')
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:200])
    for builder, file in (("json", "cut.jsonl"), ("parquet", "cut.parquet"), ("json", "gone.jsonl"), ("parquet", None)):
        source = data("datasets", builder, data_files=file and str(tmp_path / file))
        with pytest.raises(
            FlowpruneError, match=rf"datasets cannot load '{builder}' \(.+\): check data\.path, data\.sp"
        ):
            load_samples(source, "calibration", 0)


def test_the_documented_rows_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
    rows = text.split("```json\n")[1].split("```")[0]
    for name in ("IMG_1.jpg", "IMG_2.jpg", "a.jpg", "b.jpg", "f1.jpg", "f2.jpg", "f3.jpg", "dance.gif"):
        grey(0).save(tmp_path / name)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    found = read_folder(str(tmp_path), Columns())
    assert [len(sample.media) for sample in found] == [1, 1, 2, 1, 1]
    assert [sample.answers for sample in found] == [("rice",), ("Yes",), ("no", "they differ"), (), ()]
