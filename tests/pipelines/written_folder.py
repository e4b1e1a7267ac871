"""Samples written out as a folder of pictures and questions, which tests read back."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.data import Sample


def write_folder(samples: Sequence[Sample], path: Path) -> None:
    """Write samples of one picture each as such a folder."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            name = f"{number:05d}.png"
            sample.image.save(path / name)
            row = {"image": name, "question": sample.question, "answer": sample.answer, "kind": sample.kind}
            file.write(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")
