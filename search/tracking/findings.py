"""What later stages find of a study's config: metrics of the study's own run, and the samples they were measured on."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import time

import optuna
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.tracking import MlflowClient

from multimodal import FlowpruneError
from search.credentials import masked
from search.tracking.facts import RUN
from search.tracking.store import LOST, open_store, reason


@dataclass(frozen=True)
class Samples:
    """Data that a run used.

    Args:
        name: of the data.
        part: ``calibration`` or ``heldout``.
        digest: of images and questions.
        count: how many samples.
    """

    name: str
    part: str
    digest: str
    count: int


def run_of(study: optuna.Study, budget: float | None = None) -> str | None:
    """The run of a study, or that of a budget where the study has several; None if there is none."""
    known = study.user_attrs
    return known.get(RUN) if budget is None else known.get(f"{RUN}:{budget:g}", known.get(RUN))


def log_found(
    uri: str,
    study: optuna.Study,
    budget: float | None,
    metrics: Mapping[str, float],
    samples: Samples | None = None,
) -> None:
    """Log figures, and the samples behind them, with a study's run, unless it says so already.

    Args:
        uri: of the tracking store.
        study: the study; nothing is done if it has no run.
        budget: whose run, where the study has several.
        metrics: the figures by name.
        samples: what they were measured on.

    Raises:
        FlowpruneError: the tracking store does not take them.
    """
    run_id = run_of(study, budget)
    if run_id is None:
        return
    try:
        client = open_store(uri)
        known, now = client.get_run(run_id).data.metrics, int(time() * 1000)
        new = [Metric(name, value, now, 0) for name, value in metrics.items() if known.get(name) != value]
        client.log_batch(run_id, metrics=new)
        if samples is not None:
            _log_samples(client, run_id, samples)
    except LOST as error:
        raise FlowpruneError(f"MLflow at {masked(uri)} did not take what was found ({reason(error)}).") from error


def _log_samples(client: MlflowClient, run_id: str, samples: Samples) -> None:
    inputs = client.get_run(run_id).inputs
    known = {(each.dataset.name, each.dataset.digest) for each in inputs.dataset_inputs} if inputs else set()
    name = f"{samples.name} {samples.part}"
    if (name, samples.digest) not in known:
        dataset = Dataset(name, samples.digest, "flowprune", samples.name, profile=f'{{"num_rows": {samples.count}}}')
        tag = InputTag("mlflow.data.context", samples.part)
        client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
