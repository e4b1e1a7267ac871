"""From a source's row to a sample."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from multimodal import FlowpruneError
from pipelines.data.conversations import Draft, filled, read_turns
from pipelines.data.media import Origin
from pipelines.data.sample import Medium, Sample
from pipelines.settings import Columns


def read_row(row: Any, columns: Columns, origin: Origin) -> Sample:
    """A row as a sample.

    Args:
        row: names and values.
        columns: what they are called; ``images``, ``videos``, ``answers``, ``conversations`` and ``messages`` are
            known, too.
        origin: where its pictures come from.

    Raises:
        FlowpruneError: something is missing or strange; names the row.
    """
    where = origin.where
    if not isinstance(row, Mapping):
        raise FlowpruneError(f"{where} has no image: every row needs an image and a question.")
    image, video = _named(row, columns.image, "images"), _named(row, columns.video, "videos")
    asked = _named(row, columns.question, "conversations", "messages")
    shown: list[Medium] = [*origin.pictures(row.get(image), (image,)), *origin.videos(row.get(video), row.get("fps"))]
    drafts, answered = read_turns(row.get(asked), asked, origin)
    if isinstance(row.get("system"), str) and row["system"].strip() and drafts[0].role != "system":
        drafts.insert(0, Draft("system", [row["system"]]))
    kind = row.get(columns.kind)
    sample = Sample(
        filled(drafts, shown, where),
        tuple(_answers(row.get(_named(row, columns.answer, "answers")), where)) or ((answered,) if answered else ()),
        None if kind is None else str(kind),
        where=where,
    )
    if not sample.media:
        raise FlowpruneError(f"{where} has no image: every row needs an image and a question.")
    return sample


def _named(row: Mapping[str, Any], *names: str) -> str:
    return next((name for name in names if row.get(name) is not None), names[0])


def _answers(value: Any, where: str) -> Iterator[str]:
    """All answers of a value: one, a list, or the structs that VQA data sets have."""
    if isinstance(value, Mapping):
        name = next((name for name in ("answer", "text") if name in value), None)
        if name is None:
            raise FlowpruneError(f"{where} has an answer of {', '.join(value)}: give a text, a number or a list.")
        value = value[name]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _answers(each, where)
    elif value is not None and str(value).strip() and not (isinstance(value, float) and math.isnan(value)):
        yield str(value).strip()
