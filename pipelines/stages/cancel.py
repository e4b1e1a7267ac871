"""Stage cancel: stop the workers of a search; what is finished is kept, what ran waits for the next ones."""

from pipelines.cluster import Launched
from pipelines.cluster.following import wait_for
from pipelines.console import console
from pipelines.settings import Settings
from pipelines.stages.search import end_tracking
from pipelines.storage import known_study
from pipelines.tracking import study_runs
from search.reaper import Reaper
from search.study import done_trials
from search.tracking import Tracker


def run(settings: Settings) -> None:
    """Stop the workers."""
    launched = Launched(settings)
    count = len(launched.alive())
    launched.cancel()
    wait_for(launched)
    study = known_study(settings)
    done = 0
    if study is not None:
        Reaper(study, settings.search.trials).reap(study.get_trials(deepcopy=False))
        done = len(done_trials(study))
        end_tracking(settings, Tracker(study_runs(settings, study)), "FAILED")
    console.print(
        f"{count} workers stopped with {done} of {settings.search.trials} trials done; stages=[search] goes on.",
        markup=False,
    )
