"""Stage export: write the tuned config as one file that needs nothing but the model."""

import json
from pathlib import Path

from multimodal import PruningConfig, prune
from pipelines.console import console
from pipelines.keeping import keep_with_study, say_how_to_compare
from pipelines.opened import open_model
from pipelines.results import TUNED
from pipelines.settings import Settings
from pipelines.validate import REPORT


def run(settings: Settings) -> Path:
    """Write ``pruning.json`` and check that it loads and fits the model; returns its path.

    Raises:
        FlowpruneError: no search has been run.
    """
    output = settings.folder
    config = PruningConfig.from_pretrained(output / TUNED)
    if (output / REPORT).exists() and config.provenance is not None:
        found = json.loads((output / REPORT).read_text(encoding="utf-8"))["tuned"]["discrepancy"]
        provenance = config.provenance.model_copy(update={"heldout_discrepancy": found})
        config = config.model_copy(update={"provenance": provenance})
    path = config.save_pretrained(output)
    with prune(open_model(settings.model).model, PruningConfig.from_pretrained(path)):
        pass
    keep_with_study(settings, [path])
    console.print(f"pruning config: [bold]{path}[/]")
    say_how_to_compare(settings)
    return path
