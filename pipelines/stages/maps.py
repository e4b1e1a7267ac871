"""Stage maps: pictures of what a config sees in some held-out images and what it keeps."""

from pathlib import Path

from pipelines.console import console
from pipelines.figures.overlay import write_overlay
from pipelines.tracking import keep_with_study
from pipelines.workspace import Workspace


def run(workspace: Workspace) -> list[Path]:
    """Draw and keep the pictures with the study; returns their paths.

    Raises:
        FlowpruneError: there is no config, or it does not fit the model.
    """
    config = workspace.config(workspace.settings.maps.config)
    opened = workspace.model
    paths = []
    for number, sample in enumerate(workspace.samples("heldout", workspace.settings.maps.samples)):
        path = workspace.maps / f"{number:02d}.png"
        paths.append(write_overlay(opened, sample, config, path, sample.question))
        console.print(f"map: {path}")
    keep_with_study(workspace, paths, workspace.maps.name)
    return paths
