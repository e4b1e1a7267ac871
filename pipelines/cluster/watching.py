"""Progress of a search whose workers run elsewhere, read from the study itself."""

import time
from collections import Counter
from collections.abc import Container

import optuna
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.cluster.workers import Launched
from pipelines.commands import command
from pipelines.console import console, counted
from pipelines.progress import study_progress
from pipelines.stopping import WorkersGoOn
from pipelines.workspace import Workspace
from search.reaper import Reaper
from search.study import done_trials

STUDY_SECONDS, WORKERS_SECONDS = 0.5, 2.0  # between looks
STOP_SECONDS = 30  # that workers have to put their trials back


def follow(workspace: Workspace, study: optuna.Study, own: Container[int] | None = None) -> None:
    """Show a study's progress until its target is met; workers that die lose no trial, those that fail say why.

    Args:
        workspace: of the run.
        study: the study.
        own: numbers of the workers that this command launched; why others failed before was said then. None: it
            launched none.

    Raises:
        FlowpruneError: all workers are gone before that.
        KeyboardInterrupt: workers of cluster=local are stopped then.
        WorkersGoOn: others are not.
    """
    target, launched = workspace.settings.search.trials, Launched(workspace.workers)
    reaper, look, standing = Reaper(study, target), 0.0, ""
    said = {number for number in launched.failed(launched.alive()) if own is None or number not in own}
    try:
        with study_progress(study, target) as show:
            while len(done_trials(study)) < target:
                if time.monotonic() >= look:
                    look = time.monotonic() + WORKERS_SECONDS
                    reaper.reap(study.get_trials(deepcopy=False))
                    alive = launched.alive()
                    failed = launched.failed(alive)
                    for number in failed.keys() - said:
                        console.print(f"[yellow]worker {number} failed: {escape(failed[number])}[/]")
                    said |= failed.keys()
                    if launched.workers and not alive and len(done_trials(study)) < target:
                        raise FlowpruneError(_all_gone(study, target, failed))
                    told, standing = standing, _standing(list(alive.values()))
                    if standing != told and not console.is_terminal:  # where a progress bar is seen only at its end
                        console.print(standing, markup=False)
                show(standing)
                time.sleep(STUDY_SECONDS)
            show()
        wait_for(launched)
        launched.cancel()  # those that never had to begin
    except KeyboardInterrupt:
        if _leave(workspace, launched) and len(done_trials(study)) < target:
            raise WorkersGoOn from None
        raise


def _standing(states: list[str]) -> str:
    if not states:
        return "workers elsewhere"
    counts = sorted(Counter(states).items())
    return ", ".join(f"{counted(count, 'worker')} {state}" for state, count in counts)


def _all_gone(study: optuna.Study, target: int, failed: dict[int, str]) -> str:
    reason = f" ({list(failed.values())[-1]})" if failed else ""
    return (
        f"No worker is left and {len(done_trials(study))} of {target} trials are done{reason}: mend it, then give the "
        "same command again, which goes on with the study."
    )


def _leave(workspace: Workspace, launched: Launched) -> bool:
    """Say which workers go on, after those of this host were stopped; whether any does."""
    if workspace.settings.cluster.kind == "local":
        launched.cancel()
        wait_for(launched)
    count = len(launched.alive())
    if count:
        console.print(f"{counted(count, 'worker')} {'goes' if count == 1 else 'go'} on.")
        for what, stage in (("watch", "watch"), ("stop", "cancel")):
            console.print(f"to {what} them:", escape(command(workspace, stage)), soft_wrap=True, highlight=False)
    return count > 0


def wait_for(launched: Launched) -> None:
    """Wait, but not for long, until no worker is left."""
    deadline = time.monotonic() + STOP_SECONDS
    while launched.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
