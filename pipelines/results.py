"""The files a study leaves in its folder: written from the study alone, read by later stages."""

import csv
from pathlib import Path

import optuna

from multimodal import FlowpruneError, PruningConfig
from pipelines.console import console, counted
from pipelines.figures.front import plot_front
from pipelines.figures.parameters import plot_importance, plot_parallel
from pipelines.figures.search_history import plot_search
from pipelines.settings import BudgetSettings, Settings
from pipelines.tracking import keep_with_study, log_with_study, samples_of
from pipelines.workspace import Workspace
from search.credentials import masked
from search.snapshot import dump_study
from search.study import (
    TARGET,
    best_trial,
    best_trials,
    budgets_of,
    discrepancy,
    done_trials,
    is_front,
    measure_of,
    outcome,
    spent,
)
from search.tracking import trial_metrics
from search.tuned import check_tuned, tuned_config

FEWEST = 4  # trials that say anything about parameters


def as_searched(workspace: Workspace, study: optuna.Study) -> Workspace:
    """The workspace with what the study was searched for, whatever the command line says: the budgets and the target
    that it has, and the model, method and data of its folder.
    """
    workspace = _as_composed(workspace)
    named = {"name": workspace.settings.budget.name, measure_of(study): budgets_of(study)}
    budget = BudgetSettings.model_validate(named)
    target = study.user_attrs.get(TARGET, workspace.settings.search.trials)
    changed = {"pareto": is_front(study), "trials": target}
    return workspace.but(budget=budget, search=workspace.settings.search.model_copy(update=changed))


def _as_composed(workspace: Workspace) -> Workspace:
    if not workspace.composed.exists():
        return workspace
    try:
        composed = Settings.model_validate_json(workspace.composed.read_text(encoding="utf-8"))
    except (ValueError, FlowpruneError):  # of another version
        return workspace
    if composed.study != workspace.settings.study:
        return workspace
    return workspace.but(model=composed.model, method=composed.method, data=composed.data, seed=composed.seed)


def conclude(workspace: Workspace, study: optuna.Study) -> None:
    """Write what the study found, and keep it with its run."""
    composed = [workspace.composed] if workspace.composed.exists() else []  # not if searched from another folder
    keep_with_study(workspace, [*composed, *write_results(workspace, study)])
    log_calibration(workspace, study)
    for part in workspace.each_budget():
        keep_with_study(part, [part.tuned])
    for budget, best in best_trials(study).items():
        own = [trial for trial in done_trials(study) if spent(trial).asked == budget]
        console.print(
            f"best of {counted(len(own), 'trial')}: discrepancy {discrepancy(best):.4f} at {spent(best).measure} "
            f"{spent(best).met:.4g} (trial {best.number})"
        )


def log_calibration(workspace: Workspace, study: optuna.Study) -> None:
    """Log the calibration samples as the data of the study's run, and of each budget's."""
    settings = study.user_attrs["settings"]
    samples = samples_of(workspace, "calibration", settings["data"], settings["samples"])
    for part in workspace.each_budget():
        log_with_study(part, {}, samples)


def check_own(workspace: Workspace, study: optuna.Study) -> None:
    """Refuse a folder that holds the results of another study of the same name, from another storage.

    Raises:
        FlowpruneError: it does.
    """
    for part in workspace.each_budget():
        if part.tuned.exists():
            check_tuned(study, PruningConfig.from_pretrained(part.tuned), part.tuned)


def write_results(workspace: Workspace, study: optuna.Study) -> list[Path]:
    """Write the tuned config of each budget into its folder, and the study's table of trials, snapshot and pictures.

    Returns:
        The files of the study as a whole.

    Raises:
        FlowpruneError: the study has no complete trial of a budget.
    """
    check_own(workspace, study)
    parts = list(workspace.each_budget())
    best = [best_trial(study, part.settings.budget.budgets[0]) for part in parts]
    for part, trial in zip(parts, best, strict=True):
        part.folder.mkdir(parents=True, exist_ok=True)
        part.tuned.write_text(tuned_config(study, trial).model_dump_json(indent=2) + "\n", encoding="utf-8")
    workspace.snapshot.write_text(dump_study(study) + "\n", encoding="utf-8")
    _write_trials(study, workspace.trials)
    pictures = [workspace.front if workspace.settings.search.pareto else workspace.history]
    if workspace.settings.search.pareto:
        plot_front(study, best, workspace.front)
    else:
        plot_search(study, workspace.history)
    if len(done_trials(study)) >= FEWEST:
        plot_importance(study, workspace.importance)
        plot_parallel(study, workspace.parallel)
        pictures += [workspace.importance, workspace.parallel]
    return [workspace.trials, workspace.snapshot, *pictures]


def write_settings(workspace: Workspace) -> None:
    """Write the composed configuration, without credentials."""
    path = workspace.composed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(masked(workspace.settings.model_dump_json(indent=2)) + "\n", encoding="utf-8")


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
