"""What the run of a study says, and that of one budget of a front: parameters, tags, the best trial's figures, and
how the best came to be."""

from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState

from search.study import (
    LABELS,
    best_trials,
    discrepancy,
    done_trials,
    is_front,
    measure_of,
    objective_name,
    stopped_early,
)
from search.tracking.facts import CONFIG, ended, flat, shared_params, trial_metrics
from search.tracking.pages import ROW, STUDY_ROW
from search.tuned import tuned_config


@dataclass(frozen=True)
class Summary:
    """What one run should say.

    Args:
        params: they never change.
        tags: those that change.
        metrics: latest values.
        curve: the least discrepancy after each trial that was done.
        at: when the last trial ended, in milliseconds.
    """

    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    curve: list[Metric]
    at: int


def budget_of(trial: FrozenTrial) -> float | None:
    """The budget that a trial has; None if it ended before it had one."""
    config = trial.user_attrs.get("config")
    return None if config is None else float(config["budget"]["asked"])


def summary_of(study: optuna.Study, budget: float | None = None) -> Summary:
    """What the study's run should say, or that of one of its budgets."""
    trials = study.get_trials(deepcopy=False)
    if budget is not None:
        trials = [trial for trial in trials if budget_of(trial) == budget]
    best, tags, metrics = best_trials(study), {}, progress_metrics(trials)
    if budget is not None or not is_front(study):
        tags[ROW] = STUDY_ROW
        if found := best.get(budget) if budget is not None else next(iter(best.values()), None):
            tags |= {"best_trial": str(found.number), CONFIG: tuned_config(study, found).model_dump_json()}
            metrics |= trial_metrics(found)
    curve = best_curve(study, trials) if ROW in tags else []
    return Summary(_params(study, budget), tags, metrics, curve, max(map(ended, trials), default=0))


def progress_metrics(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How many trials are done, and how many failed."""
    states = [trial.state for trial in trials]
    return {
        "trials_done": float(states.count(TrialState.COMPLETE)),
        "trials_failed": float(states.count(TrialState.FAIL)),
    }


def best_curve(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[Metric]:
    """The least discrepancy measured so far, a step a trial in the order in which they ended."""
    found, best = [], float("inf")
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    for step, trial in enumerate(sorted(done, key=lambda each: (ended(each), each.number)), 1):
        if not stopped_early(trial):
            best = min(best, discrepancy(trial))
        if best < float("inf"):
            found.append(Metric(curve_name(study), best, ended(trial), step))
    return found


def curve_name(study: optuna.Study) -> str:
    """Of the metric."""
    return f"best_{objective_name(study)}"


def write_summary(client: MlflowClient, run: Run, summary: Summary, curve: str) -> int:
    """Make a run say it; returns how many things were changed."""
    known, run_id = run.data, run.info.run_id
    logged = set()
    if curve in known.metrics:
        logged = {(each.step, each.value) for each in client.get_metric_history(run_id, curve)}
    metrics = [each for each in summary.curve if (each.step, each.value) not in logged]
    metrics += [Metric(n, v, summary.at, 0) for n, v in summary.metrics.items() if known.metrics.get(n) != v]
    params = [Param(name, value) for name, value in summary.params.items() if name not in known.params]
    tags = [RunTag(name, value) for name, value in summary.tags.items() if known.tags.get(name) != value]
    for start in range(0, len(metrics), 500):  # a batch holds no more than 1,000 in all
        client.log_batch(run_id, metrics=metrics[start : start + 500])
    if params or tags:
        client.log_batch(run_id, params=params, tags=tags)
    return len(metrics) + len(params) + len(tags)


def _params(study: optuna.Study, budget: float | None) -> dict[str, str]:
    settings, labels = dict(study.user_attrs["settings"]), study.user_attrs.get(LABELS, {})
    asked = settings.pop(measure_of(study)) if budget is None else budget
    named = {"budget": asked, "trials": labels.get("trials"), "data": labels.get("data")}
    named |= {"calibration_digest": settings.pop("data"), "calibration_samples": settings.pop("samples", None)}
    settings.pop(measure_of(study), None)
    own = {name: str(value) for name, value in named.items() if value is not None}
    return flat(settings) | own | shared_params(study)


def latest_done(study: optuna.Study) -> int | None:
    """The trial that was the last to be done; None if none is."""
    done = done_trials(study)
    return max(done, key=ended).number if done else None
