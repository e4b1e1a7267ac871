"""Stage cancel: stop the workers of a search; what is finished is kept, what ran waits for the next ones."""

from pipelines.cluster import Launched
from pipelines.cluster.following import wait_for
from pipelines.console import console
from pipelines.tracking import end_tracking, study_runs
from pipelines.workspace import Workspace
from search.reaper import Reaper
from search.study import done_trials
from search.tracking import Tracker


def run(workspace: Workspace) -> None:
    """Stop the workers."""
    launched, target = Launched(workspace.workers), workspace.settings.search.trials
    count = len(launched.alive())
    launched.cancel()
    wait_for(launched)
    study = workspace.known_study
    done = 0
    if study is not None:
        Reaper(study, target).reap(study.get_trials(deepcopy=False))
        done = len(done_trials(study))
        end_tracking(workspace, Tracker(study_runs(workspace, study)), "FAILED")
    console.print(
        f"{count} workers stopped with {done} of {target} trials done; stages=[search] goes on.",
        markup=False,
    )
