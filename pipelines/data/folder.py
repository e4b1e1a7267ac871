"""A folder of pictures, videos and one list of questions about them: a .jsonl file, or a .json file with one list."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal import FlowpruneError
from pipelines.data.media import Origin
from pipelines.data.rows import read_row
from pipelines.data.sample import Sample
from pipelines.settings import Columns


def read_folder(path: str, columns: Columns) -> list[Sample]:
    """All rows of a folder, each checked; no picture is decoded.

    Args:
        path: of the folder.
        columns: what the keys of a row are called.

    Raises:
        FlowpruneError: names the file and line that is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FlowpruneError(f"data.path {path} is not a folder: give one with image files and a .jsonl file.")
    lists = sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")])
    if len(lists) != 1:
        names = f" ({', '.join(file.name for file in lists)})" if lists else ""
        raise FlowpruneError(f"{folder} holds {len(lists)} .jsonl or .json files{names}: put exactly one there.")
    [file] = lists
    rows = list(_lines(file) if file.suffix == ".jsonl" else _items(file))
    if not rows:
        raise FlowpruneError(f"{file} is empty: write one JSON object a line, with image and question.")
    return [read_row(row, columns, Origin(where, [folder])) for where, row in rows]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FlowpruneError(f"{path} is not readable UTF-8 text ({error}): save it as UTF-8.") from error


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            try:
                yield f"{file}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise FlowpruneError(f"{file}:{number} is not JSON ({error.msg}): write one object a line.") from error


def _items(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(_text(file) or "[]")
    except json.JSONDecodeError as error:
        raise FlowpruneError(f"{file}:{error.lineno} is not JSON ({error.msg}): write one list of objects.") from error
    if not isinstance(rows, list):
        raise FlowpruneError(f"{file} holds no list: write one list of objects with image and question.")
    for number, row in enumerate(rows, 1):
        yield f"{file} item {number}", row
