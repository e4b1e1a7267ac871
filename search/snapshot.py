"""A study as plain JSON and back, so that a storage that was lost can be rebuilt from what MLflow keeps."""

import json
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from multimodal import FlowpruneError
from search.credentials import masked
from search.files import SNAPSHOT


def dump_study(study: optuna.Study) -> str:
    """All of a study's trials that ended, with everything that Optuna knows of them."""
    plain = {
        "directions": [direction.name.lower() for direction in study.directions],
        "metric_names": study.metric_names,
        "user_attrs": study.user_attrs,
        "trials": [_plain(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()],
    }
    return masked(json.dumps(plain))


def _plain(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "start": trial.datetime_start and trial.datetime_start.isoformat(),
        "complete": trial.datetime_complete and trial.datetime_complete.isoformat(),
        "params": trial.params,
        "distributions": {name: distribution_to_json(each) for name, each in trial.distributions.items()},
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "intermediate_values": list(trial.intermediate_values.items()),
    }


def restore_study(storage: BaseStorage, name: str, text: str) -> optuna.Study:
    """Make a study from :func:`dump_study`'s text; a number that had not ended is kept as a failed trial.

    Args:
        storage: which has no study of that name.
        name: of the study.
        text: the JSON.

    Raises:
        FlowpruneError: it is none; the storage is left as it was.
    """
    try:
        plain = json.loads(text)
        found = {entry["number"]: _trial(entry) for entry in plain["trials"]}
        trials = [found.get(number) or _lost(number) for number in range(max(found, default=-1) + 1)]
        for trial in trials:
            trial._validate()
        study = optuna.create_study(storage=storage, study_name=name, directions=plain["directions"])
        attributes, names = dict(plain["user_attrs"]), plain["metric_names"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FlowpruneError(f"{SNAPSHOT} is not a valid study ({error}): choose another run_id.") from error
    if names is not None:
        study.set_metric_names(names)
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    study.add_trials(trials)
    return study


def _trial(entry: dict[str, Any]) -> FrozenTrial:
    return FrozenTrial(
        number=entry["number"],
        trial_id=entry["number"],
        state=TrialState[entry["state"]],
        value=None,
        values=entry["values"],
        datetime_start=entry["start"] and datetime.fromisoformat(entry["start"]),
        datetime_complete=entry["complete"] and datetime.fromisoformat(entry["complete"]),
        params=entry["params"],
        distributions={name: json_to_distribution(each) for name, each in entry["distributions"].items()},
        user_attrs=entry["user_attrs"],
        system_attrs=entry["system_attrs"],
        intermediate_values={int(step): float(value) for step, value in entry["intermediate_values"]},
    )


def _lost(number: int) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={"error": "it had not ended"})
    trial.number = number
    return trial
