"""The workers of a study that were launched, from this process or an earlier one."""

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.launchers import LAUNCHERS
from pipelines.settings import NoCluster
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Worker:
    """A worker that was launched.

    Args:
        number: among the study's workers.
        kind: of the cluster.
        id: the launcher's name for it.
    """

    number: int
    kind: str
    id: str


class Launched:
    """A study's workers, as their folder knows them.

    Args:
        folder: of the study's workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list = self.folder / "launched.json"

    @property
    def workers(self) -> list[Worker]:
        """All of them, gone ones too."""
        if not self._list.exists():
            return []
        return [Worker(**entry) for entry in json.loads(self._list.read_text(encoding="utf-8"))]

    def add(self, workers: list[Worker]) -> None:
        """Remember more of them."""
        entries = [vars(worker) for worker in self.workers + workers]
        self._list.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    def alive(self) -> dict[Worker, str]:
        """Those that run or wait to run, and how they stand."""
        by_kind = {kind: [w for w in self.workers if w.kind == kind] for kind in LAUNCHERS}
        states = {kind: LAUNCHERS[kind].alive([w.id for w in found]) for kind, found in by_kind.items() if found}
        return {w: states[w.kind][w.id] for w in self.workers if w.id in states[w.kind]}

    def failed(self, alive: Container[Worker]) -> dict[int, str]:
        """Why those failed that did, by their number; ``alive`` is what :meth:`alive` said."""
        gone = [worker for worker in self.workers if worker not in alive]
        reasons = {w.number: LAUNCHERS[w.kind].why(self.folder, w.number, w.id) for w in gone}
        return {number: reason for number, reason in reasons.items() if reason is not None}

    def cancel(self) -> None:
        """Ask all that run to stop."""
        for worker in self.alive():
            LAUNCHERS[worker.kind].cancel([worker.id])


def launch(workspace: Workspace, trials: int) -> range:
    """Launch the cluster's workers for a study, beside those that it may have already.

    Args:
        workspace: of the run, whose settings the workers get as a file.
        trials: yet to be done; there are no more workers than that.

    Returns:
        Their numbers among the study's workers.

    Raises:
        FlowpruneError: the cluster refuses.
    """
    settings = workspace.settings
    assert not isinstance(settings.cluster, NoCluster)
    launched = Launched(workspace.workers)
    launched.folder.mkdir(parents=True, exist_ok=True)
    file = launched.folder / "settings.json"
    file.touch(mode=0o600)  # a tracking server's address may hold a password
    file.write_text(settings.model_dump_json(indent=1), encoding="utf-8")
    first = len(launched.workers)
    numbers = range(first, first + min(settings.cluster.workers, trials))
    kind = settings.cluster.kind
    ids = LAUNCHERS[kind].launch(settings, launched.folder, numbers)
    launched.add([Worker(number, kind, id) for number, id in zip(numbers, ids, strict=True)])
    return numbers
