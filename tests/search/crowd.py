"""Many workers on one study, cheaply: forked from a server that has imported what they need."""

import multiprocessing
import os
import sys
import time
import unittest.mock
import warnings
from datetime import datetime, timedelta
from functools import partial
from multiprocessing import forkserver
from typing import Any

import engines
import optuna
from stand_ins import SETTINGS, StandIn, work

import search.reaper
import search.worker
from search.queue import fill
from search.storages import STORAGES
from search.study import open_study
from search.tracking import StudyRuns, Tracker, open_store

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["crowd"])


def serve_forks() -> None:
    """Start the server that forks, which finds our modules by PYTHONPATH alone; one that is there stays."""
    with unittest.mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()


def study_in(kind: str, options: dict[str, Any], name: str = "crowd", worker: int = 0, **more: Any) -> optuna.Study:
    return open_study(STORAGES[kind](**options), name, SETTINGS, **({"sampler": "random"} | more), worker=worker)


def runs_of(study: optuna.Study, uri: str) -> StudyRuns:
    return StudyRuns(open_store(uri), study, "flowprune-crowd", None)


class FastClock(datetime):
    """Of a host whose clock is a minute fast."""

    @classmethod
    def now(cls, tz=None) -> datetime:
        return datetime.now(tz) + timedelta(minutes=1)


def move_to(host: str) -> None:
    """Let this process look like one of another host, whose clock is fast."""
    search.reaper.HERE = host
    optuna.storages._rdb.storage.datetime = FastClock


def run_one(
    kind: str,
    options: dict[str, Any],
    name: str,
    worker: int,
    host: str | None,
    target: int,
    seconds: float,
    beat: float,
    uri: str | None,
    **more: Any,
) -> None:
    """One worker, whose trials take that many seconds, tracked by a server where one is named."""
    search.worker.Reaper = partial(search.reaper.Reaper, seconds=beat)
    search.worker.heartbeat = partial(search.reaper.heartbeat, seconds=beat)
    if host is not None:
        move_to(host)
    os.environ["PGPASSWORD"] = engines.PASSWORD  # the server that forks may be older than the password
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = study_in(kind, options, name, worker, **more)
    tracker = None if uri is None else Tracker(runs_of(study, uri), beside_others=True)
    work(study, target, StandIn(during=lambda _: time.sleep(seconds)), tracker, place=worker)
    if tracker is not None:
        tracker.close()


class Crowd:
    """Workers on one study; a context manager that ends those that are left.

    Args:
        kind: of the storage.
        options: of the storage.
        target: trials of the study.
        seconds: a trial takes at least.
        name: of the study.
        uri: of an MLflow server; None: not tracked.
        beat: seconds between a worker's heartbeats, and looks at others'.
        more: of :func:`search.study.open_study`.
    """

    def __init__(
        self,
        kind: str,
        options: dict,
        target: int,
        seconds: float = 0.0,
        name: str = "crowd",
        uri: str | None = None,
        beat: float = search.reaper.BEAT_SECONDS,
        **more: Any,
    ) -> None:
        self._arguments = (kind, options, name), (target, seconds, beat, uri), more
        self.study = study_in(kind, options, name, **more)
        fill(self.study, target)
        if uri is not None:
            runs_of(self.study, uri).sync("RUNNING")  # as the command that launches workers does
        self.workers: list[Any] = []

    def start(self, count: int, host: str | None = None) -> None:
        """Start more workers, on this host or as if on another."""
        serve_forks()
        (first, last, more), begun = self._arguments, len(self.workers)
        for number in range(begun, begun + count):
            worker = FORKS.Process(target=run_one, args=(*first, number, host, *last), kwargs=more)
            worker.start()
            self.workers.append(worker)

    def join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            assert worker.exitcode is not None, f"a worker is still at work after {seconds} s"

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
