"""Workers are launched, not trials: each is one process that works until the study's target is met."""

from pipelines.cluster.following import follow
from pipelines.cluster.launched import Launched, launch
from pipelines.cluster.pairing import check_pairing

__all__ = ["Launched", "check_pairing", "follow", "launch"]
