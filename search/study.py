"""The Optuna study: sampler, trial stopping, resume, and what its trials found."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from multimodal import FlowpruneError
from multimodal.config import Budget
from multimodal.options import Measure
from search.sampler import make_sampler

OBJECTIVES = {"discrepancy": "discrepancy", "kl": "next_token_kl"}  # what tables and tracking call each

ID = "study_id:"  # begins the attributes, one a worker that was first, that tell a study from others of its name
TARGET = "target"  # the attribute that holds how many trials the study is to have
LABELS = "labels"  # the attribute that holds what people call a study's model and data, and its first target


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    settings: Mapping[str, Any],
    sampler: str = "gp",
    startup: int = 10,
    seed: int = 0,
    early_stopping: bool = True,
    worker: int = 0,
    objectives: int = 1,
    guesses: Sequence[Mapping[str, Any]] = (),
) -> optuna.Study:
    """Create a study or go on with it.

    Args:
        storage: where it lives.
        name: of the study.
        settings: what makes its trials comparable: space, data, model, objective.
        sampler: see :func:`make_sampler`.
        startup: trials before the sampler models anything.
        seed: of the sampler; the same seed gives the same trials.
        early_stopping: whether clearly worse trials stop after a few samples.
        worker: number of this worker among those of one launch; each has a seed of its own.
        objectives: 1 for the discrepancy, 2 for the discrepancy and what is spent.
        guesses: see :func:`make_sampler`.

    Raises:
        FlowpruneError: it exists with other settings, or something else made it.
    """
    existing = name in optuna.get_all_study_names(storage)
    if existing:
        check_ours(optuna.load_study(study_name=name, storage=storage))
    trials = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False) if existing else []
    begun = sum(trial.state != TrialState.WAITING for trial in trials)
    own_seed = int(np.random.SeedSequence([seed, begun, worker]).generate_state(1)[0])
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=make_sampler(sampler, own_seed, startup, guesses),
        pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1) if early_stopping else optuna.pruners.NopPruner(),
        load_if_exists=True,
        directions=["minimize"] * objectives,
    )
    known = study.user_attrs.get("settings")
    plain = json.loads(json.dumps(settings, default=str))
    if not isinstance(known, Mapping):
        study.set_user_attr("settings", plain)
        study.set_metric_names([objective_name(study), "spent"][:objectives])  # what optuna-dashboard calls them
    elif known != plain:
        changed = sorted(key for key in known.keys() | plain.keys() if known.get(key) != plain.get(key))
        was = ", ".join(f"{key} was {known.get(key)} and is {plain.get(key)}" for key in changed)
        raise FlowpruneError(f"Study {name!r} exists with other settings ({was}): choose another study=NAME.")
    return study


def check_ours(study: optuna.Study) -> None:
    """Refuse a study that something else made under this name.

    Raises:
        FlowpruneError: it has something, and no settings of ours.
    """
    known = study.user_attrs
    if isinstance(known.get("settings"), Mapping):
        return
    if known or study.get_trials(deepcopy=False):  # else another worker is making it
        raise FlowpruneError(f"Study {study.study_name!r} was not made by flowprune: choose another study=NAME.")


def study_ids(study: optuna.Study) -> list[str]:
    """What a study is known by, wherever it is stored: one id, or several if workers were the first at one moment."""
    while True:
        known = [name for name in study.user_attrs if name.startswith(ID)]
        if known:
            return sorted(name.removeprefix(ID) for name in known)
        study.set_user_attr(ID + uuid.uuid4().hex, True)


def label_study(study: optuna.Study, **labels: str | int) -> None:
    """Keep what people call a study's model and data, and its target, as they were when it was made."""
    if LABELS not in study.user_attrs:
        study.set_user_attr(LABELS, labels)


def done_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards the target, early-stopped ones among them."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def stopped_early(trial: FrozenTrial) -> bool:
    """Whether a trial was clearly worse and saw only a part of the samples; its value is an estimate then."""
    return bool(trial.user_attrs.get("stopped_early", False))


def outcome(trial: FrozenTrial) -> str:
    """How a trial ended, in words: ``complete``, ``stopped early`` or ``fail``."""
    return "stopped early" if stopped_early(trial) else trial.state.name.lower()


def discrepancy(trial: FrozenTrial) -> float:
    """Of a trial that is done, or what else its study minimises; an early-stopped one's is an estimate."""
    return float(trial.values[0])


def objective_name(study: optuna.Study) -> str:
    """What tables and tracking call that which a study minimises."""
    return OBJECTIVES[study.user_attrs.get("settings", {}).get("objective", "discrepancy")]


def measure_of(study: optuna.Study) -> Measure:
    """What a study's budgets are measured in."""
    return next(measure for measure in get_args(Measure) if measure in study.user_attrs["settings"])


def budgets_of(study: optuna.Study) -> list[float]:
    """The budgets of a study."""
    found = study.user_attrs["settings"][measure_of(study)]
    return [float(each) for each in found] if isinstance(found, list) else [float(found)]


def is_front(study: optuna.Study) -> bool:
    """Whether a study has several budgets, and two objectives."""
    return len(study.directions) > 1


def spent(trial: FrozenTrial) -> Budget:
    """What a trial was asked to spend, and did."""
    return Budget(**trial.user_attrs["config"]["budget"])


def best_trials(study: optuna.Study) -> dict[float, FrozenTrial]:
    """The trial of least discrepancy by budget, least budget first, among those that saw every sample."""
    best: dict[float, FrozenTrial] = {}
    for trial in done_trials(study):
        if not stopped_early(trial):
            budget = spent(trial).asked
            best[budget] = min(best.get(budget, trial), trial, key=discrepancy)
    return dict(sorted(best.items()))


def best_trial(study: optuna.Study, budget: float | None = None) -> FrozenTrial:
    """The trial of least discrepancy among those that saw every sample.

    Args:
        study: the study.
        budget: the one that the trial had; None where a study has only one.

    Raises:
        FlowpruneError: there is none.
    """
    best = best_trials(study)
    if not best or (budget is not None and budget not in best):
        of = "" if budget is None else f" of budget {budget:g}"
        raise FlowpruneError(f"Study {study.study_name!r} has no finished trial{of}: run stages=[search] again.")
    return min(best.values(), key=discrepancy) if budget is None else best[budget]
