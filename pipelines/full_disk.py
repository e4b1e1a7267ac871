"""A disk that is full, in one sentence: each library has an error of its own for it."""

import shutil
from pathlib import Path

from pipelines.settings import FileStorage, Settings

SIGNS = ("No space left on device", "disk is full", "Disk quota exceeded")
FULL_BYTES = 2**20  # free or less


def full_disk(error: BaseException, settings: Settings) -> str | None:
    """The sentence for an error that comes of a full disk; None if it does not.

    Args:
        error: raised by whatever wrote.
        settings: of the run, which name the places.
    """
    link: BaseException | None = error
    while link is not None and not any(sign in str(link) for sign in SIGNS):
        link = link.__cause__ or link.__context__
    if link is None:
        return None
    full = [name for name, path in _places(settings).items() if _is_full(path)]
    which = f"the disk of {' and '.join(full)}" if full else "a disk"
    where = " and ".join(full) or "output, cache and storage.path"
    return f"No space is left on {which}: free some, or set {where}; the same command goes on with what is finished."


def _places(settings: Settings) -> dict[str, Path]:
    places = {"output": settings.output, "cache": settings.cache, "tracking.artifacts": settings.tracking.artifacts}
    if isinstance(settings.storage, FileStorage):
        places["storage.path"] = settings.storage.path
    return {name: Path(path).absolute() for name, path in places.items() if path is not None}


def _is_full(path: Path) -> bool:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free < FULL_BYTES
