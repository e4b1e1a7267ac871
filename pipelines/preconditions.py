"""What stages need to find, looked for before anything slow is imported."""

from pathlib import Path

from multimodal import FlowpruneError
from pipelines.data.folder import read_folder
from pipelines.workspace import Workspace

ON_DATA = ("calibrate", "search", "validate", "maps", "compare")
ON_A_CONFIG = ("validate", "export", "maps", "generate")


def check_preconditions(workspace: Workspace) -> None:
    """Look for the files that the settings name, and for those that earlier stages leave.

    Raises:
        FlowpruneError: one is missing.
    """
    settings = workspace.settings
    image = settings.generate.image
    if "generate" in settings.stages and image is not None and not Path(image).is_file():
        raise FlowpruneError(f"generate.image is {image}, which is no file: give the path of a picture.")
    if settings.data.source == "folder" and settings.data.path and set(ON_DATA) & set(settings.stages):
        read_folder(settings.data.path, settings.data.columns)
    for stage in settings.stages:
        if stage == "search":
            return
        if stage in ON_A_CONFIG and not _brings_its_own(workspace, stage):
            for each in workspace.each_budget():
                if not (each.tuned.exists() or (stage in ("maps", "generate") and each.exported.exists())):
                    raise FlowpruneError(each.no_config)


def _brings_its_own(workspace: Workspace, stage: str) -> bool:
    settings = workspace.settings
    given = {
        "export": settings.run_id or settings.registered,
        "maps": settings.maps.config,
        "generate": settings.generate.config,
    }
    return given.get(stage) is not None
