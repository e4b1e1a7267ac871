"""A comparison's MLflow runs: one parent, and one child a contender. A comparison of the same name replaces it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from multimodal import FlowpruneError
from search.credentials import masked
from search.digest import digest
from search.tracking.pages import columns_of, runs_route, shared_view, ui_of
from search.tracking.store import LOST, make_experiment, open_store, reason

PARAMS = ("method", "variant", "budget")
METRICS = ("heldout_accuracy", "lead_over_random", "hard_accuracy", "discrepancy", "retention", "kv_share", "speed_up")
CONTENT = "comparison_digest"  # the tag that tells whether there is anything new


@dataclass(frozen=True)
class Entry:
    """One contender: its run's name, params and metrics."""

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def log_comparison(
    uri: str,
    experiment: str,
    artifacts: Path | None,
    name: str,
    words: str,
    entries: Sequence[Entry],
    files: Sequence[Path],
) -> str:
    """Make MLflow hold a comparison as it is now; runs of an earlier state are deleted.

    Args:
        uri: of the tracking store.
        experiment: name of the experiment.
        artifacts: folder of a local store's artifacts; None with a server.
        name: of the comparison.
        words: its description.
        entries: the contenders.
        files: kept with the parent run.

    Returns:
        Address of the UI's page that has the contenders in one table, the most accurate first.

    Raises:
        FlowpruneError: the store does not take it.
    """
    try:
        client = open_store(uri)
        number = str(make_experiment(client, experiment, artifacts).experiment_id)
        run = _log(client, number, name, words, entries, files)
        client.set_experiment_tag(number, *_view(run))
        return f"{ui_of(uri)}/{runs_route(number, run)}"
    except LOST as error:
        raise FlowpruneError(
            f"MLflow at {masked(uri)} did not take the comparison ({reason(error)}): the same command logs it when it "
            "is mended."
        ) from error


def _log(
    client: MlflowClient, experiment: str, name: str, words: str, entries: Sequence[Entry], files: Sequence[Path]
) -> str:
    """Make the runs, unless they are there; returns the parent's id."""
    content = digest({"words": words, "entries": [vars(entry) for entry in entries]})
    known = client.search_runs([experiment], f"tags.kind = 'comparison' and tags.comparison = '{name}'")
    for run in known:
        if run.data.tags.get(CONTENT) == content and run.info.status == "FINISHED":
            return str(run.info.run_id)
    for run in known:
        for child in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
            client.delete_run(child.info.run_id)
        client.delete_run(run.info.run_id)
    tags = {"kind": "comparison", "comparison": name, CONTENT: content, "mlflow.note.content": words}
    parent = client.create_run(experiment, tags=tags, run_name=name)
    at = parent.info.start_time
    for entry in entries:
        tags = {"kind": "contender", "comparison": name, "mlflow.parentRunId": parent.info.run_id}
        child = client.create_run(experiment, tags=tags, run_name=entry.name)
        client.log_batch(
            child.info.run_id,
            metrics=[Metric(key, value, at, 0) for key, value in entry.metrics.items()],
            params=[Param(key, value) for key, value in entry.params.items()],
            tags=[RunTag("state", "complete")],
        )
        client.set_terminated(child.info.run_id, "FINISHED")
    for path in files:
        client.log_artifact(parent.info.run_id, str(path))
    client.set_terminated(parent.info.run_id, "FINISHED")
    return str(parent.info.run_id)


def _view(run: str) -> tuple[str, str]:
    """The contenders in one table, the most accurate first."""
    rows = f"tags.kind = 'contender' and tags.`mlflow.parentRunId` = '{run}'"
    return shared_view(run, rows, f"metrics.`{METRICS[0]}`", columns_of(PARAMS, METRICS), ascending=False)
