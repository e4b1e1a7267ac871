"""The queue of a study: its target is so many slots, and each is filled by exactly one finished trial.

A slot's trial waits until a worker claims it, which every storage does atomically, so that workers may come and go and
die: no trial is run twice, and the target is met to the trial. A few slots wait at a time; whoever claims one queues
the slot that comes ``AHEAD`` later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.optuna_internals import set_attribute, set_state

AHEAD = 8  # slots that wait at a time


def fill(study: optuna.Study, target: int) -> bool:
    """Queue the first missing slots, unless there are trials yet to end, which keep the queue going by themselves.

    Args:
        study: the study.
        target: its slots.

    Returns:
        Whether any slot was queued.
    """
    trials = study.get_trials(deepcopy=False)
    open_trials = [trial for trial in trials if not trial.state.is_finished() and (_slot(trial) or 0) < target]
    done = sum(trial.state == TrialState.COMPLETE for trial in trials)
    if open_trials or done >= target:
        return False
    taken = {_slot(trial) for trial in trials if trial.state != TrialState.FAIL}
    missing = [slot for slot in range(target) if slot not in taken][: min(AHEAD, target - done)]
    lost = {_slot(trial): trial for trial in trials if _wants_retry(trial, trials)}
    for slot in missing:
        if slot in lost:
            _retry(study, lost[slot])
        else:
            _queue(study, slot)
    return bool(missing)


def claim(
    study: optuna.Study, trials: Sequence[FrozenTrial], target: int, worker: Mapping[str, str], place: int = 0
) -> FrozenTrial | None:
    """Take a waiting trial, and nobody else does.

    Args:
        study: the study.
        trials: all of it, as it is.
        target: its slots.
        worker: user attributes that say who takes it.
        place: which waiting trial to try first, so that not all workers try the same.

    Returns:
        The trial, running from here on; None if none waits.
    """
    waiting = [trial for trial in trials if trial.state == TrialState.WAITING and (_slot(trial) or 0) < target]
    start = place % max(1, len(waiting))
    for trial in waiting[start:] + waiting[:start]:
        try:
            if not set_state(study, trial, TrialState.RUNNING):
                continue
        except UpdateFinishedTrialError:
            continue
        try:
            _sign(study, trial, worker)
        except KeyboardInterrupt:
            _sign(study, trial, worker)  # or nobody would know whose it was
            raise
        _queue_next(study, trials, trial, target)
        if not _is_surplus(trials, trial):
            return trial
        set_state(study, trial, TrialState.FAIL)
    return None


def _sign(study: optuna.Study, trial: FrozenTrial, worker: Mapping[str, str]) -> None:
    for name, value in worker.items():
        set_attribute(study, trial, name, value)


def put_back(study: optuna.Study, trial: FrozenTrial, target: int, reason: str) -> bool:
    """Fail a trial that will not end by itself and queue its slot again: once with the same parameters, then anew.

    Args:
        study: the study.
        trial: a running one.
        target: the study's slots.
        reason: kept with the trial.

    Returns:
        False if it had ended, or somebody else put it back.
    """
    try:
        set_attribute(study, trial, "error", reason)
        set_state(study, trial, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    trials = study.get_trials(deepcopy=False)
    trial = trials[trial.number]
    _queue_next(study, trials, trial, target)  # its worker may have had no time to
    if _wants_retry(trial, trials):
        _retry(study, trial)
    elif (slot := _slot(trial)) is not None:
        _queue(study, slot)
    return True


def _wants_retry(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial was put back, and its parameters are not yet tried again, nor a second time themselves."""
    put_back = trial.state == TrialState.FAIL and "error" in trial.user_attrs
    if not put_back or not _parameters(trial) or "retry_of" in trial.user_attrs:
        return False
    return all(other.user_attrs.get("retry_of") != trial.number for other in trials)


def _retry(study: optuna.Study, trial: FrozenTrial) -> None:
    slot = _slot(trial)
    marks = {} if slot is None else {"slot": slot}
    study.enqueue_trial(_parameters(trial), user_attrs=marks | {"retry_of": trial.number})


def _parameters(trial: FrozenTrial) -> dict[str, Any]:
    return trial.params or trial.system_attrs.get("fixed_params", {})


def _slot(trial: FrozenTrial) -> int | None:
    """The slot that a trial is for; None for one that somebody else put into the queue."""
    return trial.user_attrs.get("slot")


def _queue(study: optuna.Study, slot: int) -> None:
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"slot": slot}))


def _queue_next(study: optuna.Study, trials: Sequence[FrozenTrial], claimed: FrozenTrial, target: int) -> None:
    slot = _slot(claimed)
    if slot is None or slot + AHEAD >= target or any(_slot(trial) == slot + AHEAD for trial in trials):
        return
    _queue(study, slot + AHEAD)


def _is_surplus(trials: Sequence[FrozenTrial], claimed: FrozenTrial) -> bool:
    """Whether an earlier trial has the slot already: two workers filled the queue at once, or a storage's answer was
    lost and the call carried out twice."""
    slot = _slot(claimed)
    return slot is not None and any(
        trial.number < claimed.number and _slot(trial) == slot and trial.state != TrialState.FAIL for trial in trials
    )
