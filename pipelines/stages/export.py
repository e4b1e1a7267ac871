"""Stage export: write the tuned config as one file that needs nothing but the model."""

from pathlib import Path

from multimodal import FlowpruneError, PruningConfig, prune
from pipelines.console import console
from pipelines.targets import check_target, write_target
from pipelines.tracking import keep_with_study, register_with_study, say_how_to_compare, store_of
from pipelines.validation_report import validation_of
from pipelines.workspace import Workspace
from search.tracking import config_of_run, config_registered
from search.tuned import check_tuned


def check(workspace: Workspace) -> None:
    """Say what would keep a target from being written, before a search for it.

    Raises:
        FlowpruneError: the search would find what the target cannot express.
    """
    if "search" in workspace.settings.stages:
        check_target(workspace.settings)


def run(workspace: Workspace) -> Path:
    """Write ``pruning.json``, check that it fits the model, and register it; or write one that MLflow keeps. Then write
    what the target is told.

    Returns:
        Its path.

    Raises:
        FlowpruneError: no search has been run, MLflow has no such config, or the target cannot express it.
    """
    settings = workspace.settings
    fetched = settings.run_id is not None or settings.registered is not None
    path = _fetch(workspace) if fetched else _export(workspace)
    if settings.target is not None:
        write_target(workspace, path)
    return path


def _export(workspace: Workspace) -> Path:
    tuned = PruningConfig.from_pretrained(workspace.tuned)
    if (study := workspace.known_study) is not None:
        check_tuned(study, tuned, workspace.tuned)
    config = _with_heldout(workspace, tuned)
    path = config.save_pretrained(workspace.folder)
    with prune(workspace.model.model, PruningConfig.from_pretrained(path)):
        pass
    keep_with_study(workspace, [path])
    console.print(f"pruning config: [bold]{path}[/]")
    register_with_study(workspace, path)
    say_how_to_compare(workspace)
    return path


def _with_heldout(workspace: Workspace, config: PruningConfig) -> PruningConfig:
    """The config with its discrepancy on held-out samples, where validate has measured this very config's."""
    report, origin = validation_of(workspace, config), config.provenance
    if report is None or origin is None:
        return config
    discrepancy = report["contenders"]["tuned"]["discrepancy"]
    measured = {"heldout_discrepancy": discrepancy, "heldout_digest": report["data_digest"]}
    return config.model_copy(update={"provenance": origin.model_copy(update=measured)})


def _fetch(workspace: Workspace) -> Path:
    """Write a config of a run or of the registry; its model need not be here."""
    settings = workspace.settings
    if settings.run_id is not None and settings.registered is not None:
        raise FlowpruneError("run_id and registered are both given: give one of them.")
    if settings.run_id is not None:
        config = config_of_run(store_of(workspace), settings.run_id)
    else:
        config = config_registered(store_of(workspace), settings.registered or "")
    if workspace.tuned.exists():
        raise FlowpruneError(f"{workspace.folder} is a study's own folder: set output=FOLDER for a config from MLflow.")
    path = config.save_pretrained(workspace.study_folder)
    origin, model = config.provenance, config.model
    if origin is not None and model is not None:
        found = f"discrepancy {origin.calibration_discrepancy:.4f}"
        console.print(f"trial {origin.trial} of {origin.study}, tuned for {model.id}: {found}")
    console.print(f"pruning config: [bold]{path}[/]")
    return path
