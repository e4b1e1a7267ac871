"""The files a study leaves in its folder: written from the study alone, read by later stages."""

import csv
from pathlib import Path

import optuna

from multimodal import FlowpruneError, PruningConfig
from multimodal.config import FILE_NAME
from pipelines.figures.front import plot_front
from pipelines.figures.parameters import plot_parameters
from pipelines.figures.search_history import plot_search
from pipelines.settings import Settings
from search.credentials import masked
from search.snapshot import FILE, dump_study
from search.study import best_trial, outcome
from search.tracking import trial_metrics
from search.tuned import TUNED, tuned_config

SETTINGS, TRIALS, HISTORY, FRONT = "settings.json", "trials.csv", "search.png", "pareto.png"


def write_results(settings: Settings, study: optuna.Study) -> list[Path]:
    """Write the tuned config of each budget into its folder, and the study's table of trials,
    snapshot and pictures.

    Returns:
        The files of the study as a whole.

    Raises:
        FlowpruneError: the study has no complete trial of a budget.
    """
    output, parts = Path(settings.output), settings.each_budget()
    best = [best_trial(study, part.budget.budgets[0]) for part in parts]
    for part, trial in zip(parts, best, strict=True):
        part.folder.mkdir(parents=True, exist_ok=True)
        config = tuned_config(study, trial).model_dump_json(indent=2)
        (part.folder / TUNED).write_text(config + "\n", encoding="utf-8")
    trials = output / TRIALS
    _write_trials(study, trials)
    if settings.search.pareto:
        picture = output / FRONT
        plot_front(study, best, picture)
    else:
        picture = output / HISTORY
        plot_search(study, picture)
    snapshot = output / FILE
    snapshot.write_text(dump_study(study) + "\n", encoding="utf-8")
    return [trials, picture, snapshot, *plot_parameters(study, output)]


def write_settings(settings: Settings) -> Path:
    """Write the composed configuration, without credentials; returns the file."""
    path = Path(settings.output) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(masked(settings.model_dump_json(indent=2)) + "\n", encoding="utf-8")
    return path


def _write_trials(study: optuna.Study, path: Path) -> None:
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            facts = {"trial": trial.number, "state": outcome(trial), **trial_metrics(trial)}
            rows.append(facts | trial.user_attrs.get("parameters", {}))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def load_config(settings: Settings, path: str | None) -> PruningConfig:
    """A config that a stage was given, or else this study's tuned one, or the one that was fetched.

    Raises:
        FlowpruneError: there is none.
    """
    if path is not None:
        return PruningConfig.from_pretrained(path)
    for name in (TUNED, FILE_NAME):
        if (settings.folder / name).exists():
            return PruningConfig.from_pretrained(settings.folder / name)
    raise FlowpruneError(f"{settings.folder} holds no tuned config: run stages=[calibrate,search] first, or give one.")
