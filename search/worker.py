"""A worker: it runs trials until the study has as many as it should, whoever ran the others."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from multimodal import FlowpruneError
from search.objective import Objective
from search.optuna_internals import claimed_trial
from search.queue import claim, fill, put_back
from search.reaper import Reaper, heartbeat, whoami
from search.space import Space, flat_parameters
from search.study import best_trial, discrepancy, objective_name, stopped_early

CRASHES = 3  # trials in a row that end with an error, after which a worker gives up


def run_worker(
    study: optuna.Study,
    space: Space,
    objective: Objective,
    trials: int,
    on_start: Callable[[optuna.Trial], None],
    on_end: Callable[[FrozenTrial], None],
    place: int = 0,
) -> None:
    """Work until the *study* has that many finished trials, whoever ran them.

    Args:
        study: the study.
        space: where trials come from.
        objective: what they measure.
        trials: the study's target.
        on_start: told of each trial that starts here.
        on_end: told of each trial that is done here.
        place: of this worker among those of the study.

    Raises:
        FlowpruneError: a discrepancy is not a finite number, or the storage was lost for long.
        Exception: what ended several trials in a row.
    """

    may_stop = not isinstance(study.pruner, optuna.pruners.NopPruner)  # with two objectives a report is an error

    def evaluate(trial: optuna.Trial, least: float) -> float | tuple[float, float]:
        on_start(trial)
        config = space.suggest(trial)
        note(trial, config=config.model_dump(mode="json"), parameters=flat_parameters(config, len(space.choices) > 1))
        note(trial, **objective.shares(config), objective=objective_name(study))
        if space.measure == "latency_ms":
            note(trial, latency_ms=space.cost(config.schedule))
        seen: dict[int, float] = {}  # by sample, which is a step, however they are batched
        reported = 0

        def report() -> None:
            nonlocal reported
            for sample in objective.order[reported : len(seen)]:
                trial.report(seen[sample], sample)
            reported = len(seen)

        def after_batch(discrepancies: list[float]) -> None:
            seen.update(zip(objective.order, discrepancies, strict=False))
            if may_stop and len(seen) < objective.samples:
                report()
                if trial.should_prune():
                    _stop_if_worse(study, seen)

        try:
            discrepancies = objective.evaluate(config, after_batch)
        except _ClearlyWorse as stop:
            note(trial, samples=len(seen), stopped_early=True)
            return stop.estimate
        note(trial, samples=len(seen))
        found = sum(discrepancies) / len(discrepancies)
        if not math.isfinite(found):
            raise FlowpruneError(
                f"The discrepancy of trial {trial.number} is {found}: the model overflows in its dtype, "
                "set model.dtype=float32 or bfloat16."
            )
        if may_stop and found <= least:  # the best trial is what others are compared with; each report is a transaction
            report()
        return found if len(study.directions) == 1 else (found, space.cost(config.schedule))

    reaper, crashes = Reaper(study, trials), 0
    while True:
        known = study.get_trials(deepcopy=False)  # once a trial: databases are slow to tell all
        if sum(trial.state == TrialState.COMPLETE for trial in known) >= trials:
            return
        reaper.reap(known)
        claimed = claim(study, known, trials, whoami(), place)
        if claimed is None:
            if not fill(study, trials):
                time.sleep(random.uniform(0.2, 1.0))  # the last trials run elsewhere, and may yet come back
            continue
        try:
            with heartbeat(study, claimed):
                whole = (trial for trial in known if trial.state == TrialState.COMPLETE and not stopped_early(trial))
                least = min(map(discrepancy, whole), default=math.inf)
                values = evaluate(claimed_trial(study, claimed, known), least)
            told = study.tell(claimed.number, values, skip_if_finished=True)
        except UpdateFinishedTrialError:
            continue  # silent for so long that it was taken for dead, and the slot given to another worker
        except FlowpruneError:
            study.tell(claimed.number, state=TrialState.FAIL, skip_if_finished=True)
            raise
        except Exception as error:
            put_back(study, claimed, trials, f"{type(error).__name__}: {error}")
            crashes += 1
            if crashes == CRASHES:
                raise
            continue
        crashes = 0
        if told.state == TrialState.COMPLETE:
            on_end(told)


class _ClearlyWorse(Exception):
    """Ends a trial's evaluation early."""

    def __init__(self, estimate: float) -> None:
        super().__init__()
        self.estimate = estimate


def _stop_if_worse(study: optuna.Study, discrepancies: Mapping[int, float]) -> None:
    """End a trial that ranks behind the best one on the samples that both saw, if its mean is worse, too.

    Optuna hides pruned trials from samplers such as GPSampler, which would learn nothing from most of a search; so the
    trial completes with an estimate, as Optuna's documentation of WilcoxonPruner advises: the best trial's
    discrepancy, plus how much worse it was on the samples that both saw. It is never the best.
    """
    best = best_trial(study)
    worse = [value - best.intermediate_values[sample] for sample, value in discrepancies.items()]
    estimate = discrepancy(best) + sum(worse) / len(worse)
    if estimate > discrepancy(best):
        raise _ClearlyWorse(estimate)


def note(trial: optuna.Trial, **attributes: Any) -> None:
    """Keep facts with a trial."""
    for name, value in attributes.items():
        trial.set_user_attr(name, value)


@contextmanager
def interruptible(study: optuna.Study, trials: int) -> Iterator[None]:
    """Leave no trial running when this process is interrupted; ``trials`` is the study's target."""
    try:
        yield
    except KeyboardInterrupt:
        Reaper(study, trials).reap(study.get_trials(deepcopy=False), "its worker was stopped")
        raise
