"""Stage sync: make MLflow agree with the study, or rebuild a study that was lost from what MLflow keeps."""

import json
from pathlib import Path

import optuna

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.report_metrics import benchmarked, validated
from pipelines.results import as_searched, log_calibration, write_results
from pipelines.storage import named, open_storage
from pipelines.tracking import (
    check_tracking,
    keep_with_study,
    log_with_study,
    register_with_study,
    samples_of,
    study_runs,
)
from pipelines.validation_report import read_validation
from pipelines.workspace import Workspace
from search.snapshot import restore_study
from search.study import best_trials
from search.tracking import LOST, study_of_run, unreachable


def run(workspace: Workspace) -> int:
    """Log what MLflow lacks, mend what says something else, delete what is there twice; returns how many runs.

    Run again, it changes nothing; a lost or emptied MLflow is filled anew. The other way round, a study that its
    storage lost is made from the snapshot that its MLflow run keeps, if ``run_id`` names that.

    Raises:
        FlowpruneError: there is no such study or run, or the tracking store does not answer.
    """
    settings, uri = workspace.settings, workspace.settings.tracking.uri
    check_tracking(workspace)
    if settings.run_id is not None and workspace.known_study is None:
        restore_study(open_storage(settings.storage), settings.study, study_of_run(uri, settings.run_id))
    study = workspace.study
    try:
        changes = study_runs(workspace, study).sync(None)
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error
    if best_trials(study):
        _keep_all(as_searched(workspace, study), study)
    console.print(f"{changes} changes: MLflow agrees with {study.study_name} in {named(settings.storage)}")
    return changes


def _keep_all(workspace: Workspace, study: optuna.Study) -> None:
    """Keep with the study's run what it says itself, and what stages left in its folder."""
    keep_with_study(workspace, [*write_results(workspace, study), *_existing(workspace.composed)])
    log_calibration(workspace, study)
    for part in workspace.each_budget():
        if (report := read_validation(part)) is not None:
            samples = samples_of(part, "heldout", report["data_digest"], report["samples"])
            log_with_study(part, validated(report), samples)
        if part.benchmark.exists():
            log_with_study(part, benchmarked(json.loads(part.benchmark.read_text(encoding="utf-8"))))
        keep_with_study(part, _existing(part.tuned, part.validation, part.exported))
        for exported in _existing(part.exported):
            register_with_study(part, exported)
        for pictures in (part.maps, part.overlays):
            keep_with_study(part, sorted(pictures.glob("*.png")), pictures.name)


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]
