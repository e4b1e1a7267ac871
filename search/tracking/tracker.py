"""A worker's tracker: tells MLflow of its trials from a background thread, and never stops a search."""

import queue
import threading
import time
from collections.abc import Callable

from optuna.trial import FrozenTrial

from search.tracking.runs import StudyRuns
from search.tracking.store import reason

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a store that was lost is tried again
LAST_TRIES = 3  # at a worker's end: others may end at the same moment, and delete what this one is writing to


class Tracker:
    """Keeps MLflow in step with a worker's trials.

    What a lost store did not take needs no memory: Optuna has it, and :meth:`StudyRuns.sync` logs it when the store is
    back, or at the next worker's start, whoever ran the trial.

    Args:
        runs: of the study.
        beside_others: whether somebody else has made MLflow agree with the study already, and will at the end; then
            this one reads what others logged only if it was behind, or ended the study's last trial.
    """

    def __init__(self, runs: StudyRuns, beside_others: bool = False) -> None:
        self._runs = runs
        self._beside_others = beside_others
        self._last: int | None = None  # trial that ended here
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._pause, self._retry_at = FIRST_PAUSE, 0.0
        self._said_running = False  # which others may have ended meanwhile
        self._behind = not beside_others  # until what earlier workers could not log is logged
        self.lost: str | None = None
        self._thread = threading.Thread(target=self._log_queued, name="flowprune-tracking", daemon=True)
        self._thread.start()

    def start_trial(self, number: int) -> None:
        """Show a trial that starts."""
        began = int(time.time() * 1000)
        self._work.put(lambda: self._runs.start(number, began))

    def end_trial(self, trial: FrozenTrial) -> None:
        """Log a trial that ended."""
        self._last = trial.number
        self._work.put(lambda: self._runs.log(trial))

    def close(self, status: str | None = "FINISHED") -> None:
        """Wait for what is queued, log what was lost, and end the study's run unless other workers go on.

        Args:
            status: MLflow's word for how the search ended; None: as it was said before.
        """
        self._work.put(None)
        self._thread.join()
        for tried in range(LAST_TRIES):
            if tried:
                time.sleep(FIRST_PAUSE)
            self._attempt(lambda: self._is_needed() and self._runs.sync(status))
            if not self._behind:
                break

    def _is_needed(self) -> bool:
        if self._behind or self._said_running or not self._beside_others:
            return True
        return self._last is not None and self._last == self._runs.latest()

    def _log_queued(self) -> None:
        while True:
            wait = None
            if self._behind and (wait := self._retry_at - time.monotonic()) <= 0:
                self._said_running = True
                self._attempt(lambda: self._runs.sync("RUNNING"))
                continue
            try:
                work = self._work.get(timeout=wait)
            except queue.Empty:
                continue
            if work is None:
                return
            if not self._behind:  # else the next sync logs it
                self._attempt(work)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # whatever it is, the trials are safe with Optuna and the search goes on
            self._behind, self.lost = True, reason(error)
            self._retry_at = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._behind, self.lost, self._pause = False, None, FIRST_PAUSE
