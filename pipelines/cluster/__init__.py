"""Workers are launched, not trials: each is one process that works until the study's target is met."""

from pipelines.cluster.storage_pairing import check_pairing
from pipelines.cluster.watching import follow
from pipelines.cluster.workers import Launched, launch

__all__ = ["Launched", "check_pairing", "follow", "launch"]
