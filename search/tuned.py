"""A trial's pruning config with its provenance, from the study alone: what every export is made of."""

from importlib.metadata import version
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from multimodal import FlowpruneError, PruningConfig
from multimodal.config import Provenance, TunedModel
from search.study import discrepancy, study_ids

VERSIONS = {package: version(package) for package in ("flowprune", "torch", "transformers")}


def tuned_config(study: optuna.Study, trial: FrozenTrial) -> PruningConfig:
    """The config that a finished trial measured.

    Args:
        study: whose settings say for which model, data and budget.
        trial: one of its complete trials.
    """
    settings = study.user_attrs["settings"]
    return PruningConfig(**trial.user_attrs["config"]).model_copy(
        update={
            "model": TunedModel(**settings["model"]),
            "provenance": Provenance(
                study=study.study_name,
                study_id=study_ids(study)[0],
                trial=trial.number,
                calibration_discrepancy=discrepancy(trial),
                objective=settings.get("objective", "discrepancy"),
                data_digest=settings["data"],
                versions=VERSIONS,
            ),
        }
    )


def check_tuned(study: optuna.Study, config: PruningConfig, path: Path) -> None:
    """Refuse a config that another study tuned, such as one of the same name in another storage.

    Args:
        study: whose config it should be.
        config: as it was read; one without provenance is anybody's.
        path: of its file.

    Raises:
        FlowpruneError: another study's id, a budget that this one has not, or other calibration samples.
    """
    origin, settings = config.provenance, study.user_attrs["settings"]
    if origin is None:
        return
    budgets = None if config.budget is None else settings.get(config.budget.measure)
    if config.budget is not None and config.budget.asked not in (budgets if isinstance(budgets, list) else [budgets]):
        differs = f"its budget is {config.budget.measure} {config.budget.asked:g}"
    elif origin.study_id is not None and origin.study_id not in study_ids(study):
        differs = f"its study has the id {origin.study_id}"
    elif origin.data_digest != settings["data"]:
        differs = f"its calibration samples have the digest {origin.data_digest}"
    else:
        return
    raise FlowpruneError(
        f"{path} is not of the study {study.study_name!r} that the storage has ({differs}): name the storage that its "
        "study is in, or set output=FOLDER."
    )
