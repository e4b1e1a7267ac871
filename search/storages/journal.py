"""A study in a journal file: many workers on one host."""

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
        return JournalStorage(JournalFileBackend(str(path), JournalFileSymlinkLock(str(path), LOCK_SECONDS)))
    except OSError as error:
        raise FlowpruneError(f"The journal {path} cannot be written ({error}): set storage.path=FILE.") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:  # of a line that is none of Optuna's
        raise FlowpruneError(f"{path} is not a journal of studies, or damaged: set storage.path=FILE.") from error
