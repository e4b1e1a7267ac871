"""Where a study lives: one file a storage, each opened by what its ``conf/storage`` file says beside its kind."""

from collections.abc import Callable

from optuna.storages import BaseStorage

from search.storages.grpc import grpc_storage
from search.storages.journal import journal_storage
from search.storages.postgres import postgres_storage
from search.storages.sqlite import sqlite_storage

STORAGES: dict[str, Callable[..., BaseStorage]] = {
    "sqlite": sqlite_storage,
    "journal": journal_storage,
    "postgres": postgres_storage,
    "grpc": grpc_storage,
}
