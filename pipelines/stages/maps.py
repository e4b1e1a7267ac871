"""Stage maps: pictures of what a config sees in some held-out images and what it keeps."""

from pathlib import Path

from pipelines.console import console
from pipelines.data import load_samples
from pipelines.figures.overlay import write_overlay
from pipelines.model import open_model
from pipelines.results import load_config
from pipelines.settings import Settings
from pipelines.tracking import keep_with_study


def run(settings: Settings) -> list[Path]:
    """Draw and keep the pictures with the study; returns their paths.

    Raises:
        FlowpruneError: there is no config, or it does not fit the model.
    """
    config = load_config(settings, settings.maps.config)
    opened = open_model(settings.model)
    few = settings.data.model_copy(update={"heldout": settings.maps.samples})
    paths = []
    for number, sample in enumerate(load_samples(few, "heldout", settings.seed)):
        path = settings.folder / "maps" / f"{number:02d}.png"
        paths.append(write_overlay(opened, sample, config, path, sample.question))
        console.print(f"map: {path}")
    keep_with_study(settings, paths, "maps")
    return paths
