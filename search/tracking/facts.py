"""What MLflow says of a trial: flat names, the same few metrics, and tags to filter by."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import optuna
from mlflow.entities import Metric, Param, Run, RunTag
from optuna.trial import FrozenTrial, TrialState

from search.credentials import masked
from search.study import LABELS, discrepancy, measure_of, outcome, stopped_early
from search.tuned import tuned_config

RUN = "mlflow_run"  # the study's attribute that names its run; RUN:BUDGET names that of one of several budgets
FIGURES = ("samples", "retention", "kv_share", "flops_share", "latency_ms")
ORIGIN = ("worker", "job", "error")
CONFIG = "config"  # the tag that holds a trial's config, so that any trial can be exported
FIGURE = "figure"  # the tag that says whether a trial's discrepancy was measured or, as it was stopped early, estimated


def trial_metrics(trial: FrozenTrial) -> dict[str, float]:
    """A trial's few figures; an early-stopped one's discrepancy is an estimate, which its state says."""
    metrics: dict[str, float] = {}
    if trial.state == TrialState.COMPLETE:
        metrics[trial.user_attrs.get("objective", "discrepancy")] = discrepancy(trial)
    if trial.duration is not None:
        metrics["seconds"] = trial.duration.total_seconds()
    return metrics | {name: float(trial.user_attrs[name]) for name in FIGURES if name in trial.user_attrs}


def status(trial: FrozenTrial) -> str:
    """MLflow's word for how a trial ended."""
    return "FAILED" if trial.state == TrialState.FAIL else "FINISHED"


def ended(trial: FrozenTrial) -> int:
    """When, in milliseconds."""
    return milliseconds(trial.datetime_complete)


def milliseconds(at: datetime | None) -> int:
    """A time as MLflow keeps it; 0 if there is none."""
    return 0 if at is None else int(at.timestamp() * 1000)


def entities(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    """All that a finished trial's run holds, for one ``log_batch``."""
    tags = {"state": outcome(trial)}
    tags |= {name: masked(str(trial.user_attrs[name])) for name in ORIGIN if name in trial.user_attrs}
    if trial.state == TrialState.COMPLETE:
        tags[CONFIG] = tuned_config(study, trial).model_dump_json()
        tags[FIGURE] = "estimated" if stopped_early(trial) else "measured"
    return {
        "metrics": [Metric(name, value, ended(trial), 0) for name, value in trial_metrics(trial).items()],
        "params": [Param(name, value) for name, value in trial_params(study, trial).items()],
        "tags": [RunTag(name, value) for name, value in tags.items()],
    }


def agrees(study: optuna.Study, run: Run, trial: FrozenTrial) -> bool:
    """Whether a run says what Optuna knows of a finished trial."""
    return (
        run.info.status == status(trial)
        and run.data.tags.get("state") == outcome(trial)
        and run.data.params == trial_params(study, trial)
        and run.data.metrics == trial_metrics(trial)
    )


def trial_params(study: optuna.Study, trial: FrozenTrial) -> dict[str, str]:
    """What a trial ran: what all trials of the study share, what was suggested, under the names that optuna-dashboard
    shows, and the parameters that follow from it."""
    own = trial.params | trial.user_attrs.get("parameters", {})
    return shared_params(study) | {name: str(value) for name, value in own.items()}


def shared_params(study: optuna.Study) -> dict[str, str]:
    """The parameters that a study and its trials have in common."""
    settings = study.user_attrs["settings"]
    model = study.user_attrs.get(LABELS, {}).get("model", settings["model"]["id"])
    return {"model": str(model), "method": settings["method"], "budget_measure": measure_of(study)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as flat names and strings: ``model.id``."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value)[:500]
    return found
