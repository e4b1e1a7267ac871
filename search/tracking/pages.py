"""What a person sees first in the MLflow UI: links that sort and filter, and a study's description."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain

import optuna

from search.study import best_trials, discrepancy, done_trials, objective_name, spent
from search.tracking.facts import FIGURE, RUN
from search.tracking.store import LOST, open_store, overrides_of

LOCAL_UI = "http://127.0.0.1:5000"
VIEW = "mlflow.sharedViewState."  # begins an experiment's tags that hold the UI's "share views"
ALL = "studies"  # the view of all studies
ROW, STUDY_ROW = "row", "study"  # the tag of runs that are rows of that view: a study with one budget, or a budget
STUDY_PARAMS = ("model", "method", "budget_measure", "budget")
STUDY_METRICS = ("heldout_accuracy", "speed_up", "discrepancy")


def trials_page(uri: str, study: optuna.Study) -> str | None:
    """Address of the UI's page that lists a study's trials in one flat table, least discrepancy first.

    Args:
        uri: of the tracking store; a local database is looked at with ``mlflow ui``.
        study: the study.

    Returns:
        None if the store knows no run of the study.
    """
    return _page(uri, study, study.user_attrs.get(RUN))


def studies_page(uri: str, study: optuna.Study) -> str | None:
    """Address of the UI's page that lists all studies of the experiment that a study is in, one row each and one a
    budget of a front; arguments and result as of :func:`trials_page`."""
    return _page(uri, study, ALL)


def _page(uri: str, study: optuna.Study, view: str | None) -> str | None:
    run_id = study.user_attrs.get(RUN)
    if run_id is None or view is None:
        return None
    try:
        experiment = open_store(uri).get_run(run_id).info.experiment_id
    except LOST:
        return None
    return f"{ui_of(uri)}/{runs_route(experiment, view)}"


def ui_of(uri: str) -> str:
    """Address of a store's UI, without credentials; of a local database, what ``mlflow ui`` serves."""
    return re.sub(r"//[^/]*@", "//", uri).rstrip("/") if uri.startswith("http") else LOCAL_UI


def runs_route(experiment: str, view: str) -> str:
    """Where in the UI a shared view is: of a run, the runs below it in one table."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}&workflowType=machine_learning"


def studies_view() -> tuple[str, str]:
    """The experiment's tag behind :func:`studies_page`, and its value."""
    return shared_view(ALL, f"tags.`{ROW}` = '{STUDY_ROW}'", "params.`model`", columns_of(STUDY_PARAMS, STUDY_METRICS))


def trials_view(study: optuna.Study, run: str) -> tuple[str, str]:
    """The view behind :func:`trials_page`: which runs, in which order, with which columns.

    Every trial that is done has a discrepancy, measured or, as it was stopped early, estimated; a column says which.

    Returns:
        The experiment's tag that holds it, and its value.
    """
    done, name = done_trials(study), objective_name(study)
    named = dict.fromkeys(chain.from_iterable(trial.user_attrs["parameters"] for trial in done))
    columns = [f"metrics.`{name}`", f"tags.`{FIGURE}`", "metrics.`retention`", *(f"params.`{each}`" for each in named)]
    rows = f"tags.kind = 'trial' and tags.`mlflow.parentRunId` = '{run}'"
    return shared_view(run, rows, f"metrics.`{name}`", columns)


def budgets_view(run: str) -> tuple[str, str]:
    """The view of a front's budgets, as :func:`trials_view` is of trials."""
    rows = f"tags.kind = 'budget' and tags.`mlflow.parentRunId` = '{run}'"
    return shared_view(run, rows, "params.`budget`", columns_of(STUDY_PARAMS, STUDY_METRICS))


def shared_view(name: str, rows: str, key: str, columns: Sequence[str], ascending: bool = True) -> tuple[str, str]:
    """A table of runs, as the UI's own "share view" writes it.

    Args:
        name: of the view.
        rows: the filter of its runs.
        key: what they are sorted by.
        columns: what is shown of them.
        ascending: whether the least comes first.

    Returns:
        The experiment's tag that holds it, and its value.
    """
    state = {"searchFilter": rows, "orderByKey": key, "orderByAsc": ascending, "selectedColumns": list(columns)}
    return VIEW + name, json.dumps(state)


def columns_of(params: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Columns of a view."""
    return [*(f"params.`{name}`" for name in params), *(f"metrics.`{name}`" for name in metrics)]


def fetch_command(uri: str, which: str) -> str:
    """The command that writes a config that MLflow keeps, on any machine that reaches the store and in any folder.

    Args:
        uri: of the store.
        which: ``run_id=…`` or ``registered=…``.
    """
    store = [f"{name}={value}" for name, value in overrides_of(uri).items()]
    return shlex.join(["flowprune", "stages=[export]", which, *store, "output=tuned"])


def note(study: optuna.Study, experiment: str, run: str, uri: str, budgets: Mapping[float, str]) -> str:
    """A study's description in Markdown: where its trials are, which is best, and how to use it.

    Args:
        study: the study.
        experiment: the experiment's id.
        run: the study's.
        uri: of the store.
        budgets: a front's runs by budget; none of a study that has one budget.
    """
    lines = [f"[All studies in one table]({runs_route(experiment, ALL)})", ""]
    if not budgets:
        lines += [f"[All trials in one table, least discrepancy first]({runs_route(experiment, run)})", ""]
    else:
        lines += [f"[All budgets in one table]({runs_route(experiment, run)})", ""]
    done, best = done_trials(study), best_trials(study)
    for budget, trial in best.items():
        count = sum(spent(each).asked == budget for each in done)
        of = f"{count} trials at {spent(trial).measure} {spent(trial).met:.4g}"
        lines += [f"Best of {of}: trial {trial.number}, {objective_name(study)} {discrepancy(trial):.4f}."]
        if budget in budgets:
            lines += [f"[Its trials]({runs_route(experiment, budgets[budget])})."]
        lines += [f"Its config on any machine: `{fetch_command(uri, 'run_id=' + budgets.get(budget, run))}`", ""]
    return "\n".join([*lines, "A trial's run id works as well."] if best else lines)
