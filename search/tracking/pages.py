"""What a person sees first in the MLflow UI: links that sort and filter, and a study's description."""

import json
import re
from itertools import chain

import optuna

from search.study import best_trials, discrepancy, done_trials, objective_name, spent
from search.tracking.facts import RUN
from search.tracking.store import LOST, open_store

LOCAL_UI = "http://127.0.0.1:5000"


def trials_page(uri: str, study: optuna.Study) -> str | None:
    """Address of the UI's page that lists a study's trials in one flat table, least discrepancy first.

    Args:
        uri: of the tracking store; a local database is looked at with ``mlflow ui``.
        study: the study.

    Returns:
        None if the store knows no run of the study.
    """
    run_id = study.user_attrs.get(RUN)
    if run_id is None:
        return None
    try:
        experiment = open_store(uri).get_run(run_id).info.experiment_id
    except LOST:
        return None
    return f"{ui_of(uri)}/{runs_route(experiment, run_id)}"


def ui_of(uri: str) -> str:
    """Address of a store's UI, without credentials; of a local database, what ``mlflow ui`` serves."""
    return re.sub(r"//[^/]*@", "//", uri).rstrip("/") if uri.startswith("http") else LOCAL_UI


def runs_route(experiment: str, run: str) -> str:
    """Where in the UI the view of a run is that has the runs below it in one table."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={run}&workflowType=machine_learning"


def trials_view(study: optuna.Study, run: str) -> tuple[str, str]:
    """The view behind :func:`trials_page`: which runs, in which order, with which columns.

    Returns:
        The experiment's tag that holds it, as the UI's own "share view" writes it, and its value.
    """
    named = (trial.user_attrs["parameters"] for trial in done_trials(study))
    name = objective_name(study)
    columns = ["tags.`state`", *(f"metrics.`{metric}`" for metric in (name, f"{name}_estimated", "retention"))]
    view = {
        "searchFilter": f"tags.kind = 'trial' and tags.`mlflow.parentRunId` = '{run}'",
        "orderByKey": f"metrics.`{name}`",
        "orderByAsc": True,
        "selectedColumns": columns + [f"params.`{each}`" for each in dict.fromkeys(chain.from_iterable(named))],
    }
    return f"mlflow.sharedViewState.{run}", json.dumps(view)


def note(study: optuna.Study, experiment: str, run: str) -> str:
    """A study's description in Markdown: where its trials are, which is best, and how to use it."""
    done = done_trials(study)
    lines = [f"[All trials in one table, least discrepancy first]({runs_route(experiment, run)})", ""]
    for best in best_trials(study).values():
        of = f"{len(done)} trials at {spent(best).measure} {spent(best).met:.4g}"
        lines += [f"Best of {of}: trial {best.number}, discrepancy {discrepancy(best):.4f}.", ""]
    lines += [f"Its config on any machine: `flowprune stages=[export] run_id={run}`. A trial's run id works as well."]
    return "\n".join(lines)
