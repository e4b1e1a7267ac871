"""The files a study leaves in its folder: written from the study alone, read by later stages."""

import csv
from pathlib import Path

import optuna

from multimodal import FlowpruneError, PruningConfig
from pipelines.plots import plot_search
from pipelines.settings import Settings
from search.credentials import masked
from search.study import best_trial, outcome
from search.tracking import trial_metrics
from search.tuned import tuned_config

TUNED, SETTINGS, TRIALS, HISTORY = "tuned.json", "settings.json", "trials.csv", "search.png"
RESULTS = (TUNED, SETTINGS, TRIALS, HISTORY)


def write_results(settings: Settings, study: optuna.Study) -> PruningConfig:
    """Write the tuned config, the table of trials and the pictures of the search; returns the config.

    Raises:
        FlowpruneError: the study has no complete trial.
    """
    config = tuned_config(study, best_trial(study))
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / TUNED).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (output / SETTINGS).write_text(masked(settings.model_dump_json(indent=2)) + "\n", encoding="utf-8")
    _write_trials(study, output / TRIALS)
    plot_search(study, output / HISTORY)
    return config


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
    """A config that a stage was given, or else this study's tuned one.

    Raises:
        FlowpruneError: there is none.
    """
    if path is not None:
        return PruningConfig.from_pretrained(path)
    for name in ("pruning.json", TUNED):
        if (Path(settings.output) / name).exists():
            return PruningConfig.from_pretrained(Path(settings.output) / name)
    raise FlowpruneError(f"{settings.output} holds no tuned config: run stages=[calibrate,search] first, or give one.")
