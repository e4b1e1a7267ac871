"""Stage sync: make MLflow agree with the study, or rebuild a study that was lost from what MLflow keeps."""

from pathlib import Path

import optuna

from multimodal import FlowpruneError
from multimodal.config import FILE_NAME
from pipelines.console import console
from pipelines.figures.ranked_trials import RANKED
from pipelines.results import SETTINGS, write_results
from pipelines.settings import BudgetSettings, Settings
from pipelines.stages.validate import REPORT
from pipelines.storage import existing_study, known_study, named, open_storage
from pipelines.tracking import keep_with_study, register_with_study, study_runs
from search.snapshot import restore_study
from search.study import best_trials, spent
from search.tracking import LOST, check_store, study_of_run, unreachable
from search.tuned import TUNED


def run(settings: Settings) -> int:
    """Log what MLflow lacks, mend what says something else, delete what is there twice; returns how many runs.

    Run again, it changes nothing; a lost or emptied MLflow is filled anew. The other way round, a study that its
    storage lost is made from the snapshot that its MLflow run keeps, if ``run_id`` names that.

    Raises:
        FlowpruneError: there is no such study or run, or the tracking store does not answer.
    """
    uri = settings.tracking.uri
    check_store(uri, settings.tracking.experiment)
    if settings.run_id is not None and known_study(settings) is None:
        restore_study(open_storage(settings.storage), settings.study, study_of_run(uri, settings.run_id))
    study = existing_study(settings)
    try:
        changes = study_runs(settings, study).sync("FINISHED")
    except LOST as error:
        raise FlowpruneError(unreachable(uri, error)) from error
    if best_trials(study):
        settings = _with_budgets_of(study, settings)
        keep_with_study(settings, [*write_results(settings, study), *_existing(Path(settings.output) / SETTINGS)])
        for part in settings.each_budget():
            keep_with_study(part, _existing(*(part.folder / name for name in (TUNED, REPORT, FILE_NAME))))
            for exported in _existing(part.folder / FILE_NAME):
                register_with_study(part, exported)
            for pictures in ("maps", RANKED):
                keep_with_study(part, sorted((part.folder / pictures).glob("*.png")), pictures)
    console.print(f"{changes} changes: MLflow agrees with {study.study_name} in {named(settings.storage)}")
    return changes


def _with_budgets_of(study: optuna.Study, settings: Settings) -> Settings:
    """The settings with the budgets that the study has, whatever the command line says."""
    best = best_trials(study)
    measure = spent(next(iter(best.values()))).measure
    budget = BudgetSettings.model_validate({"name": settings.budget.name, measure: list(best)})
    search = settings.search.model_copy(update={"pareto": len(study.directions) > 1})
    return settings.model_copy(update={"budget": budget, "search": search})


def _existing(*paths: Path) -> list[Path]:
    return [path for path in paths if path.exists()]
