"""conf/storage: where the Optuna study lives."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.settings.group import Group, PathText


class FileStorage(Group):
    """conf/storage/sqlite.yaml and journal.yaml."""

    kind: Literal["sqlite", "journal"]
    path: PathText


class PostgresStorage(Group):
    """conf/storage/postgres.yaml; the password is no setting."""

    kind: Literal["postgres"]
    host: str
    port: int
    database: str
    user: str | None


class GrpcStorage(Group):
    """conf/storage/grpc.yaml."""

    kind: Literal["grpc"]
    host: str
    port: int


StorageSettings = Annotated[FileStorage | PostgresStorage | GrpcStorage, Field(discriminator="kind")]
