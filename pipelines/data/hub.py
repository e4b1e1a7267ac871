"""Any source that Hugging Face datasets loads: a hub id, or a builder with data files."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from multimodal import FlowpruneError
from pipelines.data.media import Origin, Place
from pipelines.data.rows import read_row
from pipelines.data.sample import Sample
from pipelines.settings import Columns, DataSettings

DEFAULTS = Columns()
ALSO = {"image": ("images", "video", "videos", "messages"), "question": ("conversations", "messages")}


def hub_rows(data: DataSettings) -> list[Callable[[], Sample]]:
    """The rows of a data set, each to be read when called; no picture is decoded.

    Raises:
        FlowpruneError: it cannot be loaded, or a column is missing.
    """
    rows = _loaded(data)
    for need, name in data.columns.model_dump().items():
        known = {name, *ALSO.get(need, ())} & set(rows.column_names)
        if not known and (need in ALSO or name != getattr(DEFAULTS, need)):
            raise FlowpruneError(f"{data.path} has no column {name!r} but {rows.column_names}: set data.columns.")
    raw = rows.with_format("arrow")  # which hands out bytes and paths instead of pictures
    return [partial(_sample, rows, raw, index, data) for index in range(len(rows))]


def _loaded(data: DataSettings) -> Any:
    import datasets  # slow to import

    try:
        return datasets.load_dataset(data.path, data.subset, split=data.split, data_files=data.data_files)
    except Exception as error:  # of the builder's own libraries
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0].rstrip(".") if str(cause).strip() else type(cause).__name__
        raise FlowpruneError(
            f"datasets cannot load {data.path!r} ({reason}): check data.path, data.split and data.data_files."
        ) from error


def _sample(rows: Any, raw: Any, index: int, data: DataSettings) -> Sample:
    origin = Origin(
        where=f"Row {index} of {data.path}",
        folders=_folders(data),
        fetch=partial(_bytes, raw, index),
        key=f"{rows._fingerprint} {index}",
    )
    [row] = raw[index : index + 1].to_pylist()
    return read_row({name: _plain(rows.features[name], value) for name, value in row.items()}, data.columns, origin)


def _bytes(raw: Any, index: int, place: Place) -> bytes:
    [value] = raw[index : index + 1].to_pylist()
    for step in place:
        value = value[step]
    return value


def _folders(data: DataSettings) -> list[Path]:
    """What paths in a column are relative to: the data files' folder, or the data set's, or where we are."""
    files = [data.data_files] if isinstance(data.data_files, str) else data.data_files or [data.path or ""]
    beside = Path(files[0]).expanduser()
    return [beside if beside.is_dir() else beside.parent, Path()]


def _plain(feature: Any, value: Any) -> Any:
    """A stored value as a user means it: labels by name, JSON read, pictures as bytes or path."""
    if value is None:
        return None
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    if type(feature).__name__ == "Json":  # of columns that mix types; no class of datasets 4
        return feature.decode_example(value)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: _plain(feature[name], own) for name, own in value.items()}
    own = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if own is not None and isinstance(value, list):
        return [_plain(own, each) for each in value]
    return value
