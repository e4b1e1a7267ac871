"""Which storages go with which clusters."""

from multimodal import FlowpruneError
from pipelines.cluster.launchers import LAUNCHERS
from pipelines.settings import NoCluster, Settings

ONE_HOST = ("sqlite", "journal")


def check_pairing(settings: Settings) -> None:
    """Refuse a storage that the cluster's workers cannot share, and a cluster that is not there.

    Raises:
        FlowpruneError: with the fix in it.
    """
    cluster, storage = settings.cluster, settings.storage.kind
    if isinstance(cluster, NoCluster):
        return
    if storage == "sqlite" and cluster.workers > 1:
        raise FlowpruneError(
            f"storage=sqlite is for one worker, and cluster.workers is {cluster.workers}: set storage=journal on one "
            "host, or storage=postgres."
        )
    if storage in ONE_HOST and cluster.kind != "local":
        raise FlowpruneError(
            f"storage={storage} is for workers on one host, and cluster={cluster.kind} has many: set storage=postgres, "
            "or storage=grpc for hundreds of workers."
        )
    LAUNCHERS[cluster.kind].check(settings)
