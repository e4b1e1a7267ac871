"""Calls to a database that wait while it is down: a restart of the server costs a worker time, and no trial.

One loop, which tenacity would not make shorter: what was lost is known only from the error.
"""

import functools
import random
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage

from multimodal import FlowpruneError

PATIENCE_SECONDS = 600.0
LONGEST_PAUSE = 10.0


def make_patient(storage: BaseStorage, where: str, is_lost: Callable[[Exception], bool]) -> BaseStorage:
    """The same storage, whose calls are tried again while the server behind it does not answer.

    A call whose answer was lost may be carried out twice. That is harmless for everything but a new trial in the queue,
    which :func:`search.queue.claim` then sees to be one too many.

    Args:
        storage: changed in place.
        where: the server, for messages.
        is_lost: whether an error means that the server does not answer.
    """
    for name in sorted(BaseStorage.__abstractmethods__):
        setattr(storage, name, _patient(getattr(storage, name), where, is_lost))
    return storage


def _patient(call: Callable[..., Any], where: str, is_lost: Callable[[Exception], bool]) -> Callable[..., Any]:
    @functools.wraps(call)
    def patient(*args: Any, **kwargs: Any) -> Any:
        pause, began = 0.2, time.monotonic()
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not is_lost(error):
                    raise
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise FlowpruneError(
                        f"The storage at {where} was lost and has not come back in {PATIENCE_SECONDS:.0f} s: start it, "
                        "then give the same command again."
                    ) from error
                time.sleep(pause * random.uniform(0.5, 1.5))  # not all workers at once
                pause = min(2 * pause, LONGEST_PAUSE)

    return patient
