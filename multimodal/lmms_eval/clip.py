"""Videos that a task shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.video_utils import VideoMetadata, load_video

from multimodal.prompts import frames_metadata


@dataclass(frozen=True)
class Clip:
    """Frames of a video ``[frames, rows, columns, 3]``, and how many of them a second has."""

    frames: np.ndarray
    fps: float

    @property
    def metadata(self) -> dict[str, Any]:
        """What the processor's own rule chooses among them by."""
        return frames_metadata(len(self.frames), self.fps)


def read_clip(part: Mapping[str, Any], most: int) -> Clip:
    """A video, or what of it lies between ``video_start`` and ``video_end``, in seconds.

    Args:
        part: of a message; its ``video`` is a file or address, or holds all of this as ``url`` or ``path``.
        most: frames of it, evenly apart.
    """
    named: Any = part["video"]
    if isinstance(named, Mapping):
        part, named = named, named.get("url") or named.get("path")
    start, end = part.get("video_start"), part.get("video_end")

    def chosen(metadata: VideoMetadata, **_: Any) -> np.ndarray:
        last, fps = metadata.total_num_frames - 1, metadata.fps or 1.0
        first = 0 if start is None else min(round(start * fps), last)
        final = last if end is None else min(max(round(end * fps), first), last)
        return np.linspace(first, final, min(most, final - first + 1)).round().astype(int)

    frames, metadata = load_video(named, sample_indices_fn=chosen)
    index = metadata.frames_indices
    apart = (index[-1] - index[0]) / (len(index) - 1) if len(index) > 1 else 1
    return Clip(np.asarray(frames), (metadata.fps or 1.0) / apart)
