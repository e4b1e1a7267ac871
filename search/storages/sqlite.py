"""A study in an SQLite file: one worker on one host."""

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from multimodal import FlowpruneError


def sqlite_storage(path: str | Path) -> BaseStorage:
    """A study file for one worker on one host.

    Raises:
        FlowpruneError: the file cannot be written, or another Optuna made it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    except (OSError, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise FlowpruneError(f"The study file {path} cannot be written ({reason}): set storage.path=FILE.") from error
    except RuntimeError as error:
        raise FlowpruneError(
            f"The study file {path} was made by another Optuna than {optuna.__version__}: optuna storage upgrade "
            f"--storage sqlite:///{path}, or set storage.path=FILE."
        ) from error

    @event.listens_for(storage.engine, "connect")
    def _fast_commits(connection: Any, _: Any) -> None:
        # with a write-ahead log a commit survives the process without waiting for the disk
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()
    return get_storage(storage)
