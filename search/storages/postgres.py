"""A study in PostgreSQL: many workers on many hosts."""

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from multimodal import FlowpruneError
from search.storages.patience import make_patient

CONNECTIONS = 10  # of one process at most; it holds one for each of its threads that has something to say
ENGINE = {
    "pool_pre_ping": True,  # a connection that died in idle hours is replaced before it is used
    "pool_size": 2,
    "max_overflow": CONNECTIONS - 2,
    "connect_args": {"connect_timeout": 10, "application_name": "flowprune", "keepalives_idle": 60},
}


def postgres_storage(host: str, port: int, database: str, user: str | None) -> BaseStorage:
    """A database that many workers on many hosts share.

    The password is libpq's business: PGPASSWORD, or a line in ~/.pgpass. No setting holds it.

    Raises:
        FlowpruneError: the server does not answer, or does not let us in.
    """
    where = f"{host}:{port}"
    url = URL.create("postgresql+psycopg2", username=user, host=host, port=port, database=database)
    try:
        storage = RDBStorage(url.render_as_string(), engine_kwargs=ENGINE)
    except ImportError as error:
        raise FlowpruneError("storage=postgres needs psycopg2: pip install 'flowprune[postgres]'.") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise FlowpruneError(_refusal(error, where, database)) from error
    except RuntimeError as error:
        raise FlowpruneError(
            f"The database {database} at {where} was made by another Optuna than {optuna.__version__}: optuna storage "
            "upgrade --storage URL, or set storage.database."
        ) from error
    return make_patient(get_storage(storage), where, _is_lost)


def _refusal(error: Exception, where: str, database: str) -> str:
    reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
    if "password" in reason or "role" in reason:
        reason = reason.rpartition("FATAL:")[2].strip()
        return f"PostgreSQL at {where} refused ({reason}): check PGPASSWORD or ~/.pgpass, and storage.user."
    if "database" in reason and "does not exist" in reason:
        return f"PostgreSQL at {where} has no database {database!r}: createdb {database}, or set storage.database."
    reason = reason.rpartition("failed: ")[2]
    return f"No PostgreSQL answers at {where} ({reason}): start it, or set storage.host and storage.port."


def _is_lost(error: Exception) -> bool:
    """Whether the server went away, rather than refused what it was asked."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__  # type: ignore[assignment]
    # the last: a connection that was lost in the middle of a transaction
    if isinstance(error, OperationalError | InterfaceError | PendingRollbackError):
        return True
    return isinstance(error, DBAPIError) and error.connection_invalidated
