"""What a row names as its pictures and videos: paths, file URLs, bytes, structs of both, and lists of them."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from multimodal import FlowpruneError
from pipelines.data.pictures import Picture, stored
from pipelines.data.videos import Video, video_of

NAMES = ("path", "url", "image", "image_url", "video", "file_name")  # of a struct that names a file
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a row's pictures come from.

    Args:
        where: the row, for messages.
        folders: that its paths are relative to, the first that has the file.
        fetch: gives the bytes at a place of the row again, so that none are kept; None: the row holds none.
        key: digest of the row's data; None: it holds none.
    """

    where: str
    folders: Sequence[Path]
    fetch: Callable[[Place], bytes] | None = None
    key: str | None = None

    def pictures(self, value: Any, place: Place) -> list[Picture]:
        """All pictures of a value.

        Args:
            value: of a column or key.
            place: of the value in the row.

        Raises:
            FlowpruneError: it is none, names a file that is not there, or one that would have to be downloaded.
        """
        if value is None or value == []:
            return []
        if isinstance(value, list | tuple):
            return [each for n, own in enumerate(value) for each in self.pictures(own, (*place, n))]
        if isinstance(value, Mapping):
            if value.get("bytes"):
                return [self._held((*place, "bytes"))]
            named = [value[name] for name in NAMES if value.get(name)]
            return self.pictures(named[0], place) if named else self._strange(value, place)
        if isinstance(value, bytes):
            return [self._held(place)]
        if isinstance(value, str) and value.startswith("data:"):
            return [stored(partial(self._inline, value), self.where, "in its data: URL")]
        if isinstance(value, str) and value.strip():
            return [stored(self._file(value, "image"), self.where)]
        return self._strange(value, place)

    def videos(self, value: Any, fps: float | None) -> list[Video]:
        """All videos of a value: a path each, or a list of the paths of its frames.

        Raises:
            FlowpruneError: as for pictures, or nothing here reads it.
        """
        if value is None or value == []:
            return []
        several = isinstance(value, list) and isinstance(value[0], list)
        alike = isinstance(value, list) and all(isinstance(each, str) and not _is_frame(each) for each in value)
        each = value if several or alike else [value]
        return [self._video(own, fps) for own in each]

    def _video(self, value: Any, fps: float | None) -> Video:
        if isinstance(value, Mapping):
            named = [value[name] for name in NAMES if value.get(name)]
            value = named[0] if named else value
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) and path.strip() for path in paths):
            self._strange(value, ("video",))
        return video_of([self._file(path, "video") for path in paths], fps, self.where)

    def _held(self, place: Place) -> Picture:
        assert self.fetch is not None
        return stored(partial(self.fetch, place), self.where, f"of {place[0]}", lambda: f"{self.key} {place}")

    def _inline(self, url: str) -> bytes:
        try:
            return base64.b64decode(url.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise FlowpruneError(f"{self.where}: the data: URL of its image is not base64: replace it.") from error

    def _file(self, name: str, what: str) -> Path:
        url = urlsplit(name)
        if url.scheme in ("http", "https", "s3", "gs", "hf"):
            raise FlowpruneError(
                f"{self.where} names the {what} {name}, and nothing is downloaded here: save it and name the file."
            )
        path = Path(url2pathname(url.path) if url.scheme == "file" else name).expanduser()
        for folder in self.folders:
            found = folder / path
            if found.is_file() or (what == "video" and found.is_dir()):
                return found
        raise FlowpruneError(
            f"{self.where} names the {what} {name}, which is not in {self.folders[0]}: add it or drop the row."
        )

    def _strange(self, value: Any, place: Place) -> Any:
        raise FlowpruneError(
            f"{self.where} gives {place[0]} as {type(value).__name__}: give a path, bytes, or a list of them."
        )


def _is_frame(name: str) -> bool:
    return Path(name).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp")
