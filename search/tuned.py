"""A trial's pruning config with its provenance, from the study alone: what every export is made of."""

from importlib.metadata import version

import optuna
from optuna.trial import FrozenTrial

from multimodal import PruningConfig
from multimodal.config import Provenance, TunedModel
from search.study import discrepancy

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
                trial=trial.number,
                calibration_discrepancy=discrepancy(trial),
                objective=settings.get("objective", "discrepancy"),
                data_digest=settings["data"],
                versions=VERSIONS,
            ),
        }
    )
