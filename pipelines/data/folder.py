"""A folder of image files and one JSONL file: image, question and, where known, answer and kind."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from multimodal import FlowpruneError
from pipelines.data.sample import Sample


def folder_rows(path: str) -> list[Callable[[], Sample]]:
    """The rows of a folder, each to be read when called; every row and image is checked before.

    Raises:
        FlowpruneError: names the file and line that is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FlowpruneError(f"data.path {path} is not a folder: give one with image files and a .jsonl file.")
    lists = sorted(folder.glob("*.jsonl"))
    if len(lists) != 1:
        raise FlowpruneError(f"{folder} holds {len(lists)} .jsonl files: put exactly one there.")
    rows: list[Callable[[], Sample]] = []
    for number, line in enumerate(_text(lists[0]).split("\n"), 1):
        if line.strip():
            rows.append(
                partial(_sample, folder, _checked(line, f"{lists[0]}:{number}", folder), f"{lists[0]}:{number}")
            )
    if not rows:
        raise FlowpruneError(f"{lists[0]} is empty: write one JSON object a line, with image and question.")
    return rows


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowpruneError(f"{path} is not readable UTF-8 text ({error}): save it as UTF-8.") from error


def _checked(line: str, where: str, folder: Path) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FlowpruneError(f"{where} is not JSON ({error.msg}): write one object a line.") from error
    for key in ("image", "question"):
        if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
            raise FlowpruneError(f"{where} has no {key}: every row needs an image and a question.")
    if not (folder / row["image"]).is_file():
        raise FlowpruneError(
            f"{where} names the image {row['image']}, which is not in {folder}: add it or drop the row."
        )
    return row


def _sample(folder: Path, row: dict[str, Any], where: str) -> Sample:
    answer, kind = row.get("answer"), row.get("kind")
    image = open_image(folder / row["image"], where)
    return Sample(image, row["question"], None if answer is None else str(answer), None if kind is None else str(kind))


def open_image(path: Path, where: str) -> Image.Image:
    """Read an image as RGB.

    Raises:
        FlowpruneError: it cannot be read; names it and where it is used.
    """
    with _readable(path, where) as image:
        return image.convert("RGB")


@contextmanager
def _readable(path: Path, where: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FlowpruneError(f"{where}: the image {path} cannot be read: replace it or drop the row.") from error


def write_folder(samples: list[Sample], path: Path) -> None:
    """Write samples as such a folder."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            name = f"{number:05d}.png"
            sample.image.save(path / name)
            row = {"image": name, "question": sample.question, "answer": sample.answer, "kind": sample.kind}
            file.write(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
