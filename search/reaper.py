"""Workers that died: their running trials are failed and queued again, on every storage and from every host.

A worker beats: while a trial runs it counts up one of the trial's attributes. Whoever looks counts his own looks at
which nothing had changed, so that neither the hosts' clocks nor an outage of the storage makes a live worker look dead.
Where process ids mean the same as for the worker, its process is asked for, and death is seen at once. Optuna's own
heartbeat works on a database and under ``study.optimize`` alone.
"""

import contextlib
import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.optuna_internals import set_attribute
from search.queue import put_back

BEAT_SECONDS = 10.0
LOOKS = 6  # at which nothing had changed: dead


def place() -> str | None:
    """Where process ids mean what they mean here: the host, its boot and its PID namespace, which containers of one
    host name do not share; None where the operating system cannot tell.
    """
    if not sys.platform.startswith("linux"):
        return socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        space = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None
    return f"{socket.gethostname()}/{hashlib.sha256(space.encode()).hexdigest()[:6]}"


HERE = place()


def whoami() -> dict[str, str]:
    """User attributes of a trial that say who runs it: the process, and its job where a cluster has one."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{what}_ID") for what in ("JOB", "TASK"))
    of_slurm = os.environ.get("SLURM_JOB_ID") if array is None else f"{array}_{task}"
    job = os.environ.get("FLOWPRUNE_JOB", of_slurm)
    return {"worker": f"{HERE or socket.gethostname()}:{os.getpid()}"} | ({} if job is None else {"job": job})


@contextlib.contextmanager
def heartbeat(study: optuna.Study, trial: FrozenTrial, seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Show that this process is at work on a trial, inside the block."""
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(seconds):
            beats += 1
            with contextlib.suppress(Exception):  # the trial's own calls meet the same trouble, and say it
                set_attribute(study, trial, "heartbeat", beats)

    threading.Thread(target=beat, name="flowprune-heartbeat", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class Reaper:
    """Puts back the trials of dead workers.

    Args:
        study: the study.
        target: its slots.
        seconds: between looks at workers of other hosts.
    """

    def __init__(self, study: optuna.Study, target: int, seconds: float = BEAT_SECONDS) -> None:
        self._study = study
        self._target = target
        self._seconds = seconds
        self._looked = -float("inf")
        self._seen: dict[int, tuple[object, int]] = {}  # trial: what it last showed, looks that saw the same

    def reap(self, trials: Sequence[FrozenTrial], reason: str = "its worker died") -> list[int]:
        """Fail dead workers' trials and queue them again.

        Args:
            trials: of the study, as it is.
            reason: kept with those trials.

        Returns:
            Their numbers.
        """
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        dead = [trial for trial in running if is_dead_here(trial)]
        now = time.monotonic()
        if now - self._looked >= self._seconds:
            self._looked = now
            self._seen = {trial.number: self._look(trial) for trial in running}
            dead += [t for t in running if t not in dead and self._seen[t.number][1] >= LOOKS]
        return [trial.number for trial in dead if put_back(self._study, trial, self._target, reason)]

    def _look(self, trial: FrozenTrial) -> tuple[object, int]:
        shown = (trial.user_attrs.get("worker"), trial.user_attrs.get("heartbeat"), len(trial.intermediate_values))
        before, looks = self._seen.get(trial.number, (None, 0))
        return shown, looks + 1 if shown == before else 0


def is_dead_here(trial: FrozenTrial) -> bool:
    """Whether a running trial's worker was a process of this place that is gone, or this one, which is not at it."""
    where, _, process = trial.user_attrs.get("worker", "").rpartition(":")
    return HERE is not None and where == HERE and not _alive(int(process))


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False  # whoever asks is between trials
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
