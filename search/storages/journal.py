"""A study in a journal file: many workers on one host."""

import json
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from multimodal import FlowpruneError

LOCK_SECONDS = 5  # after which the lock of a worker that died is broken


def journal_storage(path: str | Path) -> BaseStorage:
    """A journal file, for many workers on one host.

    Raises:
        FlowpruneError: the file cannot be read or written, or is damaged.
    """
    path = Path(path).absolute()  # the lock is a link to it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        lock = JournalFileSymlinkLock(str(path), LOCK_SECONDS)
        _mend_end(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock))
    except OSError as error:
        raise FlowpruneError(f"The journal {path} cannot be written ({error}): set storage.path=FILE.") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # of a line that is none of Optuna's
        raise FlowpruneError(f"{path} is not a journal of studies, or damaged: set storage.path=FILE.") from error


def _mend_end(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut off half a line, which a writer left that died or had no disk, and which the next one would go on with.

    Raises:
        ValueError: there is no journal before it.
        KeyError: the same.
        TypeError: the same.
    """
    lock.acquire()  # nobody writes now
    try:
        with path.open("r+b") as file:
            *whole, half = file.read().rsplit(b"\n", 2)
            if whole:
                json.loads(whole[-1])["op_code"]  # which each line of Optuna's has
            elif half:
                raise ValueError("one line without an end")
            if half:
                file.truncate(file.seek(0, 2) - len(half))
    finally:
        lock.release()
