"""Stage cancel: stop the workers of a search; what is finished is kept, what ran waits for the next ones."""

from pipelines.cluster import Launched
from pipelines.cluster.watching import wait_for
from pipelines.console import console, counted
from pipelines.results import as_searched
from pipelines.tracking import CANCELLED, end_tracking, study_runs
from pipelines.workspace import Workspace
from search.reaper import Reaper
from search.study import done_trials
from search.tracking import Tracker


def run(workspace: Workspace) -> None:
    """Stop the workers; a study that has its trials stays as it is."""
    launched, study = Launched(workspace.workers), workspace.known_study
    if study is not None:
        workspace = as_searched(workspace, study)
    target = workspace.settings.search.trials
    alive = counted(len(launched.alive()), "worker")
    launched.cancel()
    wait_for(launched)
    done = 0 if study is None else len(done_trials(study))
    if study is not None and done >= target:
        console.print(f"{alive} stopped; the study has its {target} trials, and stays as it is.")
        return
    if study is not None:
        Reaper(study, target).reap(study.get_trials(deepcopy=False), "its worker was stopped")
        done = len(done_trials(study))
        end_tracking(workspace, Tracker(study_runs(workspace, study)), CANCELLED)
    console.print(f"{alive} stopped with {done} of {target} trials done; the search command goes on.")
