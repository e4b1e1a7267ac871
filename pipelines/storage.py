"""Storages and studies as the settings name them."""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from pipelines.settings import FileStorage, StorageSettings
from search.storages import STORAGES
from search.study import check_ours


def open_storage(settings: StorageSettings) -> BaseStorage:
    """The storage of the settings.

    Raises:
        FlowpruneError: it cannot be reached, written or entered.
    """
    return STORAGES[settings.kind](**settings.model_dump(exclude={"kind"}))


def named(settings: StorageSettings) -> str:
    """Where studies are, for messages."""
    return settings.path if isinstance(settings, FileStorage) else f"{settings.kind}://{settings.host}:{settings.port}"


def find_study(settings: StorageSettings, name: str) -> optuna.Study | None:
    """The study of a name, if it exists.

    Raises:
        FlowpruneError: something else made it, or the storage cannot be reached.
    """
    if isinstance(settings, FileStorage) and not Path(settings.path).exists():
        return None
    storage = open_storage(settings)
    if name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    check_ours(study)
    return study
