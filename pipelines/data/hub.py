"""Any source that Hugging Face datasets loads: a hub id, or a builder with data files."""

from collections.abc import Callable
from functools import partial
from typing import Any

from PIL import Image

from multimodal import FlowpruneError
from pipelines.data.sample import Sample
from pipelines.settings import DataSettings


def hub_rows(data: DataSettings) -> list[Callable[[], Sample]]:
    """The rows of a data set, each to be read when called.

    Raises:
        FlowpruneError: it cannot be loaded, or a column is missing.
    """
    import datasets  # slow to import

    try:
        rows = datasets.load_dataset(data.path, data.subset, split=data.split, data_files=data.data_files)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlowpruneError(
            f"datasets cannot load {data.path!r} ({reason}): check data.path and data.split."
        ) from error
    for need in (data.columns.image, data.columns.question):
        if need not in rows.column_names:
            raise FlowpruneError(f"{data.path} has no column {need!r} but {rows.column_names}: set data.columns.")
    return [partial(_sample, rows, index, data) for index in range(len(rows))]


def _sample(rows: Any, index: int, data: DataSettings) -> Sample:
    row, columns = rows[index], data.columns
    image = row[columns.image]
    if not isinstance(image, Image.Image) or not row[columns.question]:
        raise FlowpruneError(f"Row {index} of {data.path} has no image or no question: filter it out.")
    answer, kind = row.get(columns.answer), row.get(columns.kind)
    return Sample(
        image.convert("RGB"),
        str(row[columns.question]),
        None if answer is None else str(answer),
        None if kind is None else str(kind),
    )
