"""Exported configs in MLflow's model registry: one registered model a model and budget, one version an export."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from multimodal import FlowpruneError, PruningConfig
from multimodal.config import Provenance
from multimodal.options import FILE_NAME
from search.credentials import masked
from search.tracking.facts import RUN
from search.tracking.pages import fetch_command
from search.tracking.store import LOST, open_store, reason

CHAMPION = "champion"  # the alias of the version of least discrepancy among those measured on the latest one's samples
EXPORTS = "exports"  # the folder of a run's artifacts that keeps each of its exports, by digest


@dataclass(frozen=True)
class Registered:
    """A config's place in the registry."""

    name: str
    version: str
    is_champion: bool


def register(
    uri: str, study: optuna.Study, model: str, path: Path, figures: Mapping[str, float] | None = None
) -> Registered | None:
    """Enter an exported config, unless it is there already, and make the best of its model and budget the champion.

    Args:
        uri: of the tracking store.
        study: whose run it comes from; None is returned if it has none.
        model: the model's name.
        path: of the exported ``pruning.json``.
        figures: what was measured of it, by name; kept as the version's tags.

    Raises:
        FlowpruneError: the store does not take it.
    """
    run_id = study.user_attrs.get(RUN)
    if run_id is None:
        return None
    try:
        return _register(open_store(uri), run_id, model, path, figures or {})
    except LOST as error:
        raise FlowpruneError(f"MLflow at {masked(uri)} did not register {path} ({reason(error)}).") from error


def _register(client: MlflowClient, run_id: str, model: str, path: Path, figures: Mapping[str, float]) -> Registered:
    config, key = PruningConfig.from_pretrained(path), digest(path)
    assert config.budget is not None and config.provenance is not None
    name = f"flowprune-{model}-{config.budget.measure}-{config.budget.asked:g}"
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = list(client.search_model_versions(f"name = '{name}'"))
    own = next((version for version in versions if (version.run_id, version.tags.get("digest")) == (run_id, key)), None)
    if own is None:
        client.log_artifact(run_id, str(path), f"{EXPORTS}/{key}")
        tags = {"digest": key, "study": config.provenance.study, "trial": str(config.provenance.trial)}
        tags |= _measured(config.provenance)
        source = f"runs:/{run_id}/{EXPORTS}/{key}"
        own = client.create_model_version(name, source, run_id, tags)
        versions.append(own)
    for figure, value in figures.items():
        if own.tags.get(figure) != f"{value:.6g}":
            client.set_model_version_tag(name, own.version, figure, f"{value:.6g}")
    words = _described(config, figures, fetch_command(client.tracking_uri, f"registered={name}/{own.version}"))
    if own.description != words:
        client.update_model_version(name, own.version, words)
    best = _best(versions)
    if str(client.get_registered_model(name).aliases.get(CHAMPION)) != str(best.version):
        client.set_registered_model_alias(name, CHAMPION, str(best.version))
    return Registered(name, str(own.version), own.version == best.version)


def _described(config: PruningConfig, figures: Mapping[str, float], command: str) -> str:
    budget, origin = config.budget, config.provenance
    assert budget is not None and origin is not None
    found = f"{config.method.name}, {budget.measure} {budget.met:.4g}, discrepancy {origin.calibration_discrepancy:.4f}"
    if origin.heldout_discrepancy is not None:
        found += f", held-out {origin.heldout_discrepancy:.4f}"
    measured = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
    return f"{found}{measured}.\n\n`{command}`"


def _measured(origin: Provenance) -> dict[str, str]:
    """Discrepancies, and the samples that they were measured on, as a version's tags."""
    tags = {"discrepancy": str(origin.calibration_discrepancy), "data_digest": origin.data_digest}
    if origin.heldout_discrepancy is not None:
        heldout = {"heldout_discrepancy": origin.heldout_discrepancy, "heldout_digest": origin.heldout_digest}
        tags |= {name: str(value) for name, value in heldout.items()}
    return tags


def _best(versions: Sequence[ModelVersion]) -> ModelVersion:
    """Of least discrepancy, where that was measured on the same samples as the latest version's: on held-out ones, or
    on calibration samples as long as no version was measured on others."""
    heldout = [version for version in versions if "heldout_discrepancy" in version.tags]
    measured = heldout or versions
    figure, samples = ("heldout_discrepancy", "heldout_digest") if heldout else ("discrepancy", "data_digest")
    latest = max(measured, key=lambda version: int(version.version))
    alike = [version for version in measured if version.tags.get(samples) == latest.tags.get(samples)]
    return min(alike, key=lambda version: float(version.tags.get(figure, "inf")))


def digest(path: Path) -> str:
    """Of an exported file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def find_version(client: MlflowClient, registered: str) -> ModelVersion:
    """The version that ``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION`` names; the champion if neither is given.

    Raises:
        FlowpruneError: there is none.
    """
    parts = re.fullmatch(r"([^/@:]+)(?:@([\w.-]+)|/(\d+))?", registered)
    known = ", ".join(model.name for model in client.search_registered_models("name LIKE 'flowprune-%'")) or "none"
    missing = FlowpruneError(
        f"registered={registered} is not in the registry, which has {known}: give NAME, NAME@ALIAS or NAME/VERSION."
    )
    if parts is None:
        raise missing
    name, alias, version = parts.groups()
    try:
        if version is not None:
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, alias or CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise missing from error


def exported_file(version: ModelVersion) -> tuple[str, str, str]:
    """Where a version's config is.

    Returns:
        Its run, the path among that run's artifacts, and the digest that the file must have.

    Raises:
        FlowpruneError: flowprune did not register it.
    """
    key = version.tags.get("digest", "")
    if not version.run_id or not re.fullmatch(r"[0-9a-f]{16}", key):
        raise FlowpruneError(f"Version {version.version} of {version.name} is not flowprune's: choose another.")
    return version.run_id, f"{EXPORTS}/{key}/{FILE_NAME}", key
