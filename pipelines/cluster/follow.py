"""Progress of a search whose workers run elsewhere, read from the study itself."""

import time

import optuna
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.cluster.launched import Launched
from pipelines.console import console
from pipelines.progress import study_progress
from pipelines.settings import Settings
from search.reaper import Reaper
from search.study import done_trials

LOOK_SECONDS = 1.0
STOP_SECONDS = 30  # that workers have to put their trials back


def follow(settings: Settings, study: optuna.Study) -> None:
    """Show a study's progress until its target is met; workers that die lose no trial, those that fail say why.

    Raises:
        FlowpruneError: all workers are gone before that.
        KeyboardInterrupt: workers on this host are stopped then, others go on.
    """
    target, launched = settings.search.trials, Launched(settings)
    reaper, said = Reaper(study, target), set[int]()
    try:
        with study_progress(study, target) as show:
            while len(done_trials(study)) < target:
                reaper.reap()
                alive, failed = launched.alive(), launched.failed()
                for number in failed.keys() - said:
                    console.print(f"[yellow]worker {number} failed: {escape(failed[number])}[/]")
                said |= failed.keys()
                show(f"{len(alive)} workers")
                if not alive and len(done_trials(study)) < target:
                    raise FlowpruneError(_all_gone(study, target, failed))
                time.sleep(LOOK_SECONDS)
            show()
        wait_for(launched)
    except KeyboardInterrupt:
        _leave(settings, launched)
        raise


def _all_gone(study: optuna.Study, target: int, failed: dict[int, str]) -> str:
    reason = f" ({list(failed.values())[-1]})" if failed else ""
    return (
        f"No worker is left and {len(done_trials(study))} of {target} trials are done{reason}: mend it, then give the "
        "same command again, which goes on with the study."
    )


def _leave(settings: Settings, launched: Launched) -> None:
    if settings.cluster.kind == "local":
        launched.cancel()
        wait_for(launched)
        return
    console.print(
        f"{len(launched.alive())} workers go on. Watch them with stages=[watch], stop them with stages=[cancel]."
    )


def wait_for(launched: Launched) -> None:
    """Wait, but not for long, until no worker is left."""
    deadline = time.monotonic() + STOP_SECONDS
    while launched.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
