"""Choose the calibration and held-out samples of a data source; they never overlap."""

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Literal

from multimodal import FlowpruneError
from pipelines.data.folder import folder_rows
from pipelines.data.hub import hub_rows
from pipelines.data.photos import photo_background
from pipelines.data.sample import Sample
from pipelines.data.scenes import scenes
from pipelines.settings import DataSettings

Part = Literal["calibration", "heldout"]
Row = Callable[[], Sample]


def load_samples(data: DataSettings, part: Part, seed: int) -> list[Sample]:
    """The samples of one part.

    Args:
        data: the source and how many of it.
        part: ``calibration`` or ``heldout``.
        seed: of the draw; scenes have fixed sets of their own.

    Raises:
        FlowpruneError: the data are missing, empty or broken; names the file and line.
    """
    if data.source in ("scenes", "photos"):
        if data.split not in ("heldout", "test"):
            raise FlowpruneError(f"data.split is {data.split!r}: the scenes have heldout and test.")
        split = "calibration" if part == "calibration" else data.split
        count = data.calibration if part == "calibration" else data.heldout
        return list(scenes(split, count, background=photo_background if data.source == "photos" else None))
    if not data.path:
        raise FlowpruneError(f"data.path is missing: say where the {data.source} is.")
    rows = folder_rows(data.path) if data.source == "folder" else hub_rows(data)
    return [row() for row in _draw(rows, data, part, seed)]


def _draw(rows: Sequence[Row], data: DataSettings, part: Part, seed: int) -> list[Row]:
    if len(rows) < 2:
        raise FlowpruneError(f"{data.path} has {len(rows)} samples: a search needs at least 2, to calibrate and check.")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    calibration = min(data.calibration, max(1, len(rows) // 2))
    chosen = order[:calibration] if part == "calibration" else order[calibration : calibration + data.heldout]
    return [rows[index] for index in chosen]


def data_digest(samples: Sequence[Sample]) -> str:
    """A digest of images and questions."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(repr((sample.image.size, sample.question)).encode())
        found.update(sample.image.tobytes())
    return found.hexdigest()[:16]
