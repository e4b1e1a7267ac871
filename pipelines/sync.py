"""Stage sync: make MLflow agree with the study, from what the storage and the output folder hold."""

from pathlib import Path

from multimodal import FlowpruneError
from multimodal.config import FILE_NAME
from pipelines.console import console
from pipelines.keeping import keep_with_study, register_with_study, study_runs
from pipelines.ranked import RANKED
from pipelines.results import SETTINGS, write_results
from pipelines.settings import Settings
from pipelines.storage import existing_study, named
from pipelines.validate import REPORT
from search.study import best_trials
from search.tracking import LOST, check_store, unreachable
from search.tuned import TUNED


def run(settings: Settings) -> int:
    """Log what MLflow lacks, mend what says something else, delete what is there twice; returns how many runs.

    Run again, it changes nothing; a lost or emptied MLflow is filled anew.

    Raises:
        FlowpruneError: there is no such study, or the tracking store does not answer.
    """
    uri = settings.tracking.uri
    check_store(uri, settings.tracking.experiment)
    study = existing_study(settings)
    try:
        changes = study_runs(settings, study).sync("FINISHED")
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error
    if best_trials(study):
        keep_with_study(settings, [*write_results(settings, study), *_existing(Path(settings.output) / SETTINGS)])
        for part in settings.each_budget():
            keep_with_study(part, _existing(*(part.folder / name for name in (TUNED, REPORT, FILE_NAME))))
            for exported in _existing(part.folder / FILE_NAME):
                register_with_study(part, exported)
            for pictures in ("maps", RANKED):
                keep_with_study(part, sorted((part.folder / pictures).glob("*.png")), pictures)
    console.print(f"{changes} changes: MLflow agrees with {study.study_name} in {named(settings.storage)}")
    return changes


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]
