"""Stage calibrate: run the vision tower and the unpruned model once over the samples, and keep what trials need."""

from pipelines.calibration import Calibration, observed
from pipelines.console import console
from pipelines.workspace import Workspace


def run(workspace: Workspace) -> Calibration:
    """Cache the calibration samples; what is cached already is not computed again.

    Raises:
        FlowpruneError: bad data or model, or a cache that cannot be written.
    """
    samples = workspace.samples("calibration")
    calibration = observed(workspace, samples, "calibration")
    console.print(f"{len(samples)} calibration samples in {calibration.folder}")
    return calibration
