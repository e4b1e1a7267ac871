"""conf/cluster: who runs the trials."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.settings.group import Group


class NoCluster(Group):
    """conf/cluster/none.yaml."""

    kind: Literal["none"]


class LocalCluster(Group):
    """conf/cluster/local.yaml."""

    kind: Literal["local"]
    workers: int = Field(ge=1)


class SlurmCluster(Group):
    """conf/cluster/slurm.yaml."""

    kind: Literal["slurm"]
    workers: int = Field(ge=1)
    partition: str | None
    account: str | None
    qos: str | None
    gpus: int = Field(ge=0)
    cpus: int = Field(ge=1)
    memory: str | None
    hours: float = Field(gt=0)
    options: dict[str, Any]


class RayCluster(Group):
    """conf/cluster/ray.yaml."""

    kind: Literal["ray"]
    address: str
    workers: int = Field(ge=1)
    gpus: float = Field(ge=0)
    cpus: int = Field(ge=1)
    resources: dict[str, float]
    environment: list[str]


ClusterSettings = Annotated[NoCluster | LocalCluster | SlurmCluster | RayCluster, Field(discriminator="kind")]
