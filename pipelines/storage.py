"""The study's storage as the settings name it."""

from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from multimodal import FlowpruneError
from pipelines.settings import FileStorage, Settings, StorageSettings
from search.storages import STORAGES


def open_storage(settings: StorageSettings) -> BaseStorage:
    """The storage of the settings.

    Raises:
        FlowpruneError: it cannot be reached, written or entered.
    """
    return STORAGES[settings.kind](**settings.model_dump(exclude={"kind"}))


def named(settings: StorageSettings) -> str:
    """Where studies are, for messages."""
    return settings.path if isinstance(settings, FileStorage) else f"{settings.kind}://{settings.host}:{settings.port}"


def known_study(settings: Settings) -> optuna.Study | None:
    """The settings' study, if it exists."""
    if isinstance(settings.storage, FileStorage) and not Path(settings.storage.path).exists():
        return None
    storage = open_storage(settings.storage)
    if settings.study not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=settings.study, storage=storage)


def existing_study(settings: Settings) -> optuna.Study:
    """The settings' study.

    Raises:
        FlowpruneError: there is none.
    """
    study = known_study(settings)
    if study is None:
        raise FlowpruneError(
            f"{named(settings.storage)} has no study {settings.study!r}: run stages=[search] first, or set study=NAME."
        )
    return study
