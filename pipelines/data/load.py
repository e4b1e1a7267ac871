"""Choose the calibration and held-out samples of a data source; they never overlap."""

import hashlib
import random
from collections.abc import Sequence
from typing import Literal, TypeVar

from multimodal import FlowpruneError
from pipelines.data.asking import as_asked
from pipelines.data.folder import read_folder
from pipelines.data.hub import hub_rows
from pipelines.data.photos import photo_background
from pipelines.data.sample import Sample
from pipelines.data.scenes import scenes
from pipelines.scores import check_answers
from pipelines.settings import DataSettings

Part = Literal["calibration", "heldout"]
T = TypeVar("T")


def load_samples(data: DataSettings, part: Part, seed: int) -> list[Sample]:
    """The samples of one part, as the model is asked; their pictures are decoded when they are looked at.

    Args:
        data: the source and how many of it.
        part: ``calibration`` or ``heldout``.
        seed: of the draw; scenes have fixed sets of their own.

    Raises:
        FlowpruneError: the data are missing, empty or broken; names the file and line.
    """
    samples = [as_asked(sample, data) for sample in _chosen(data, part, seed)]
    for sample in samples:
        check_answers(sample.answers, data.score, sample.where)
        for medium in sample.media:
            medium.check()
    return samples


def _chosen(data: DataSettings, part: Part, seed: int) -> list[Sample]:
    if data.source in ("scenes", "photos"):
        if data.split not in ("heldout", "test"):
            raise FlowpruneError(f"data.split is {data.split!r}: the scenes have heldout and test.")
        split = "calibration" if part == "calibration" else data.split
        count = data.calibration if part == "calibration" else data.heldout
        return list(scenes(split, count, background=photo_background if data.source == "photos" else None))
    if not data.path:
        raise FlowpruneError(f"data.path is missing: say where the {data.source} is.")
    if data.source == "datasets":
        return [row() for row in _draw(hub_rows(data), data, part, seed)]
    return _draw(read_folder(data.path, data.columns), data, part, seed)


def _draw(rows: Sequence[T], data: DataSettings, part: Part, seed: int) -> list[T]:
    if len(rows) < 2:
        raise FlowpruneError(f"{data.path} has {len(rows)} samples: a search needs at least 2, to calibrate and check.")
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    calibration = min(data.calibration, max(1, len(rows) // 2))
    chosen = order[:calibration] if part == "calibration" else order[calibration : calibration + data.heldout]
    return [rows[index] for index in chosen]


def data_digest(samples: Sequence[Sample]) -> str:
    """A digest of all that is shown and said to the model, without decoding a picture of a file."""
    found = hashlib.sha256()
    for sample in samples:
        said = [(turn.role, [p if isinstance(p, str) else (p.key(),) for p in turn.parts]) for turn in sample.turns]
        found.update(repr((said, dict(sample.template))).encode())
    return found.hexdigest()[:16]
