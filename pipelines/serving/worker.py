"""The thread that has the model: it takes waiting requests that can be computed together, in the order they came."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Sequence

from multimodal import FlowpruneError
from pipelines.serving.job import Job
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusalError

log = logging.getLogger("flowprune.serve")


class Worker:
    """Runs jobs in batches.

    Args:
        run: computes jobs of one key, and says what comes of it.
        key: of a job; only jobs of one are computed together.
        waiting: jobs, at most.
        batch_size: jobs that are computed together, at most.
        metrics: of the endpoint.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Job]], None],
        key: Callable[[Job], Hashable],
        waiting: int,
        batch_size: int,
        metrics: Metrics,
    ) -> None:
        self._run, self._key, self._most, self._batch_size, self._metrics = run, key, waiting, batch_size, metrics
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="flowprune-serve", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            RefusalError: as many wait as may.
        """
        with self._changed:
            if self._closed:
                raise RefusalError(503, "The endpoint is shutting down: try another, or later.")
            self._waiting = [each for each in self._waiting if not each.gone]
            if len(self._waiting) >= self._most:
                raise RefusalError(429, f"{self._most} requests wait already: try again in a moment.")
            self._waiting.append(job)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def close(self) -> None:
        """Finish what is being computed, and refuse what waits."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.say(RefusalError(503, "The endpoint is shutting down: try another, or later."))
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while jobs := self._next():
            self._attempt(jobs)

    def _next(self) -> list[Job]:
        """The oldest job and those that can be computed with it; none when closed."""
        with self._changed:
            while True:
                self._waiting = [job for job in self._waiting if not job.gone]
                self._metrics.waiting.set(len(self._waiting))
                if self._closed or self._waiting:
                    break
                self._changed.wait()
            if self._closed:
                return []
            key = self._key(self._waiting[0])
            jobs = [job for job in self._waiting if self._key(job) == key][: self._batch_size]
            self._waiting = [job for job in self._waiting if job not in jobs]
            self._metrics.waiting.set(len(self._waiting))
        for job in jobs:
            self._metrics.took("queue", time.monotonic() - job.queued)
        return jobs

    def _attempt(self, jobs: Sequence[Job]) -> None:
        try:
            self._run(jobs)
        except RefusalError as refusal:
            self._fail(jobs, refusal)
        except FlowpruneError as error:
            self._fail(jobs, RefusalError(400, str(error)))
        except Exception as error:  # whatever it is, the next requests are answered
            where = " <- ".join(
                f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)[-4:])
            )
            log.error(
                "%s of %d requests failed in %s", type(error).__name__, len(jobs), where
            )  # its text may quote one
            self._fail(
                jobs, RefusalError(500, f"The model failed ({type(error).__name__}): the endpoint's log says where.")
            )

    def _fail(self, jobs: Sequence[Job], refusal: RefusalError) -> None:
        """Say so to a job alone; of several, try each by itself, since one may have spoilt it for all."""
        for job in jobs:
            if len(jobs) > 1 and not job.has_said:
                self._attempt([job])
            else:
                job.say(refusal)
