"""Videos of a folder: files, animated pictures, or pictures of frames. The model's processor chooses among frames."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from multimodal import FlowpruneError
from pipelines.data.pictures import BROKEN, Picture, as_shown, file_digest, stored

ANIMATED = {".gif", ".webp", ".png", ".apng"}


@dataclass(frozen=True)
class Video:
    """A video that is read whenever it is asked for.

    Args:
        frames: gives all frames, RGB ``[frames, rows, columns, 3]``, or the file that the processor reads itself.
        fps: frames a second; None: the file says it.
        first: its first frame, for pictures; None where only the processor can read the file.
        key: gives a digest of what it is made from.
    """

    frames: Callable[[], np.ndarray | str]
    fps: float | None
    first: Picture | None
    key: Callable[[], str]

    def check(self) -> None:
        """Say whether its first frame can be a picture."""
        if self.first is not None:
            self.first.check()

    def stills(self, count: int) -> list[Image.Image]:
        """So many of its frames, evenly apart; grey where only the processor reads the file."""
        frames = self.frames()
        if isinstance(frames, str):
            return [Image.new("RGB", (64, 64), "grey")] * count
        chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
        return [Image.fromarray(frames[number]) for number in chosen]

    def changed(self, change: Callable[[Image.Image], Image.Image], name: str) -> "Video":
        """The same with every frame changed, in a way that has a name; a file that only the processor reads stays."""
        if self.first is None:
            return self

        def frames() -> np.ndarray:
            own = self.frames()
            assert not isinstance(own, str)
            return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in own])

        return replace(self, frames=frames, first=self.first.changed(change, name), key=lambda: f"{self.key()} {name}")


def video_of(files: Sequence[Path], fps: float | None, where: str) -> Video:
    """A video from one file, one folder of frames, or the files of its frames.

    Args:
        files: one or several.
        fps: frames a second that the row says.
        where: it is used, for messages.

    Raises:
        FlowpruneError: nothing here can read it, or nobody says how fast frames follow each other.
    """
    if len(files) == 1 and files[0].is_dir():
        files = sorted(file for file in files[0].iterdir() if file.suffix.lower() in Image.registered_extensions())
        if not files:
            raise FlowpruneError(f"{where}: the folder of frames holds no images: add them or drop the row.")
    if len(files) > 1:
        if not fps or fps <= 0:
            raise FlowpruneError(f"{where} has a video of single frames and no fps: add fps, its frames a second.")
        pictures = [stored(file, where) for file in files]
        return Video(partial(_stacked, pictures, where), fps, pictures[0], lambda: _joined(files, fps, where))
    [file] = files
    if file.suffix.lower() in ANIMATED:
        speed = fps or _speed(file, where)
        return Video(partial(_animation, file, where), speed, stored(file, where), lambda: _joined(files, speed, where))
    if find_spec("torchcodec") is None:
        raise FlowpruneError(
            f"{where}: nothing here reads the video {file}: run pip install torchcodec, or give a folder of frames."
        )
    return Video(lambda: str(file), None, None, lambda: _joined(files, fps, where))


def _joined(files: Sequence[Path], fps: float | None, where: str) -> str:
    return f"{fps} " + " ".join(file_digest(file, where) for file in files)


def _stacked(pictures: Sequence[Picture], where: str) -> np.ndarray:
    frames = [np.asarray(picture.shown()) for picture in pictures]
    if len({frame.shape for frame in frames}) > 1:
        raise FlowpruneError(f"{where} has a video of frames of several sizes: bring them to one.")
    return np.stack(frames)


def _speed(file: Path, where: str) -> float:
    """Frames a second of an animation."""
    try:
        with Image.open(file) as image:
            durations = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(image)]
    except BROKEN as error:
        raise FlowpruneError(f"{where}: the video {file} cannot be read: replace it or drop the row.") from error
    return 1000 * len(durations) / sum(durations) if sum(durations) else 10.0  # as browsers show those without


def _animation(file: Path, where: str) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.stack([np.asarray(as_shown(frame.copy())) for frame in ImageSequence.Iterator(image)])
    except BROKEN as error:
        raise FlowpruneError(f"{where}: the video {file} cannot be read: replace it or drop the row.") from error
