"""The Optuna study: storage, sampler, trial stopping, resume, and trials whose worker died."""

import hashlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from multimodal import FlowpruneError
from search.objective import Objective
from search.space import Space, flat_parameters

WORKER = f"{socket.gethostname()}:{os.getpid()}"


def digest(description: Mapping[str, Any]) -> str:
    """A short digest of plain data, to tell whether two searches or caches are the same."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sqlite_storage(path: Path) -> optuna.storages.BaseStorage:
    """A study file for one worker on one host.

    Raises:
        FlowpruneError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    except (OSError, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        raise FlowpruneError(f"The study file {path} cannot be written ({reason}): set storage.path=FILE.") from error

    @event.listens_for(storage.engine, "connect")
    def _fast_commits(connection: Any, _: Any) -> None:
        # with a write-ahead log a commit survives the process without waiting for the disk
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    storage.engine.dispose()
    return storage


def make_sampler(name: str, seed: int, startup: int) -> optuna.samplers.BaseSampler:
    """The sampler of that name: ``gp``, ``tpe`` or ``random``.

    Raises:
        FlowpruneError: there is none of that name.
    """
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=True)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise FlowpruneError(f"search.sampler is {name!r}: choose gp, tpe or random.")


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    settings: Mapping[str, Any],
    sampler: str = "gp",
    startup: int = 10,
    seed: int = 0,
    early_stopping: bool = True,
) -> optuna.Study:
    """Create a study or go on with it.

    Args:
        storage: where it lives.
        name: of the study.
        settings: what makes its trials comparable: space, data, model, objective.
        sampler: see :func:`make_sampler`.
        startup: random trials before the sampler models anything.
        seed: of the sampler; the same seed gives the same trials.
        early_stopping: whether clearly worse trials stop after a few samples.

    Raises:
        FlowpruneError: it exists with other settings.
    """
    existing = name in optuna.get_all_study_names(storage)
    trials = len(storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)) if existing else 0
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=make_sampler(sampler, seed + trials, startup),
        pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1) if early_stopping else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    known = study.user_attrs.get("settings")
    plain = json.loads(json.dumps(settings, default=str))
    if known is None:
        study.set_user_attr("settings", plain)
    elif known != plain:
        changed = sorted(key for key in known.keys() | plain.keys() if known.get(key) != plain.get(key))
        was = ", ".join(f"{key} was {known.get(key)} and is {plain.get(key)}" for key in changed)
        raise FlowpruneError(f"Study {name!r} exists with other settings ({was}): choose another study=NAME.")
    return study


def fail_dead_trials(study: optuna.Study) -> list[int]:
    """Fail the running trials of this host's dead processes and queue their parameters once more.

    Returns:
        Their numbers.
    """
    dead = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, process = trial.user_attrs.get("worker", WORKER).rpartition(":")
        if host != socket.gethostname() or _alive(int(process)):
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        if "retry_of" not in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        dead.append(trial.number)
    return dead


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # a trial that this process left behind before this call
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def done_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards the target, early-stopped ones among them."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def stopped_early(trial: FrozenTrial) -> bool:
    """Whether a trial was clearly worse and saw only a part of the samples; its value is an estimate then."""
    return bool(trial.user_attrs.get("stopped_early", False))


def outcome(trial: FrozenTrial) -> str:
    """How a trial ended, in words: ``complete``, ``stopped early`` or ``fail``."""
    return "stopped early" if stopped_early(trial) else trial.state.name.lower()


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The trial of least discrepancy among those that saw every sample.

    Raises:
        FlowpruneError: there is none.
    """
    whole = [trial for trial in done_trials(study) if not stopped_early(trial)]
    if not whole:
        raise FlowpruneError(f"Study {study.study_name!r} has no finished trial: run stages=[search] again.")
    return min(whole, key=lambda trial: trial.value or 0.0)


def run_worker(
    study: optuna.Study,
    space: Space,
    objective: Objective,
    trials: int,
    on_start: Callable[[optuna.Trial], None],
    on_end: Callable[[FrozenTrial], None],
) -> None:
    """Work until the *study* has that many finished trials, whoever ran them.

    Args:
        study: the study.
        space: where trials come from.
        objective: what they measure.
        trials: the study's target.
        on_start: told of each trial that starts here.
        on_end: told of each trial that ends here, unless with an error.

    Raises:
        FlowpruneError: a discrepancy is not a finite number.
    """

    may_stop = not isinstance(study.pruner, optuna.pruners.NopPruner)  # each report is a transaction

    def evaluate(trial: optuna.Trial) -> float:
        trial.set_user_attr("worker", WORKER)
        on_start(trial)
        config = space.suggest(trial)
        note(trial, config=config.model_dump(mode="json"), parameters=flat_parameters(config))
        note(trial, **objective.shares(config))
        reported = 0

        def after_batch(discrepancies: list[float]) -> None:
            nonlocal reported
            for step, value in enumerate(discrepancies[reported:] if may_stop else [], reported):
                trial.report(value, step)
            reported = len(discrepancies)
            if reported < objective.samples and trial.should_prune():
                raise _ClearlyWorse(discrepancies)

        try:
            discrepancies = objective.evaluate(config, after_batch)
        except _ClearlyWorse as stop:
            note(trial, samples=reported, stopped_early=True)
            return _estimate(study, stop.discrepancies)
        note(trial, samples=reported)
        discrepancy = sum(discrepancies) / len(discrepancies)
        if not math.isfinite(discrepancy):
            raise FlowpruneError(
                f"The discrepancy of trial {trial.number} is {discrepancy}: the model overflows in its dtype, "
                "set model.dtype=float32 or bfloat16."
            )
        return discrepancy

    def stop_at_target(study: optuna.Study, trial: FrozenTrial) -> None:
        on_end(trial)
        if len(done_trials(study)) >= trials:
            study.stop()

    if len(done_trials(study)) < trials:
        study.optimize(evaluate, callbacks=[stop_at_target])


class _ClearlyWorse(Exception):
    """Ends a trial's evaluation early."""

    def __init__(self, discrepancies: list[float]) -> None:
        super().__init__()
        self.discrepancies = discrepancies


def _estimate(study: optuna.Study, discrepancies: list[float]) -> float:
    """An early-stopped trial's discrepancy: the best trial's, plus how much worse it was on the samples both saw.

    Optuna hides pruned trials from samplers such as GPSampler, which would learn nothing from most of a search; so
    the trial completes with an estimate, as Optuna's documentation of WilcoxonPruner advises. It is never the best.
    """
    best = best_trial(study)
    assert best.value is not None
    worse = [value - best.intermediate_values[step] for step, value in enumerate(discrepancies)]
    return max(best.value + sum(worse) / len(worse), math.nextafter(best.value, math.inf))


def note(trial: optuna.Trial, **attributes: Any) -> None:
    """Keep facts with a trial."""
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


@contextmanager
def interruptible(study: optuna.Study) -> Iterator[None]:
    """Leave no trial running when this process is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        fail_dead_trials(study)
        raise
