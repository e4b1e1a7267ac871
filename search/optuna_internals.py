"""What of Optuna is private and used here, in one place: its storages tell more than its studies do.

Workers claim trials by hand, sign them and beat, which needs a study's storage and a trial's own id; samplers read all
trials twice a suggestion unless they are handed what was read before. A test fails when one of these changes.
"""

from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState


def set_state(study: optuna.Study, trial: FrozenTrial, state: TrialState) -> bool:
    """Change a trial's state, atomically; False if another worker has claimed it.

    Raises:
        UpdateFinishedTrialError: it has ended.
    """
    return study._storage.set_trial_state_values(trial._trial_id, state)


def set_attribute(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    """Keep a fact with a trial that somebody runs.

    Raises:
        UpdateFinishedTrialError: it has ended.
    """
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


def claimed_trial(study: optuna.Study, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> optuna.Trial:
    """A trial that was claimed, to be run with its study as it was read.

    Args:
        study: the study.
        trial: running.
        trials: all of them, as they were read: what samplers would read again, which hundreds of workers wait for.
    """
    view = copy(study)

    def read(deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False) -> list:
        return [each for each in trials if states is None or each.state in states]

    view._get_trials = read  # type: ignore[method-assign]
    return optuna.Trial(view, trial._trial_id)


def proxy_server(storage: BaseStorage, host: str, port: int, threads: ThreadPoolExecutor) -> Any:
    """A gRPC server that serves a storage; Optuna's own function starts one and never gives it back.

    Raises:
        ImportError: grpcio is not installed.
        RuntimeError: the address is taken.
    """
    from optuna.storages._grpc.server import make_server

    return make_server(storage, host, port, threads)
