"""Stage search: find the config of least discrepancy under the budget, every trial tracked in MLflow."""

import optuna

from pipelines.cluster import check_pairing, follow, launch
from pipelines.console import console
from pipelines.figures.ranked_trials import write_ranked
from pipelines.progress import study_progress
from pipelines.results import check_own, conclude, write_settings
from pipelines.storage import open_storage
from pipelines.tracking import check_tracking, keep_with_study, tracked
from pipelines.trials import Search, check_budget, join, work
from pipelines.workspace import Workspace
from search.queue import fill
from search.reaper import Reaper
from search.study import TARGET, best_trials, done_trials, spent
from search.tracking import Tracker
from search.worker import interruptible


def run(workspace: Workspace) -> optuna.Study:
    """Run the study to its target, or go on with it; returns it.

    Raises:
        FlowpruneError: bad settings, an unreachable storage or tracking store, a study of other settings.
    """
    check_services(workspace)
    search = join(workspace)
    study, target = search.study, workspace.settings.search.trials
    check_own(workspace, study)
    study.set_user_attr(TARGET, target)
    write_settings(workspace)
    dead = Reaper(study, target).reap(study.get_trials(deepcopy=False))
    if dead:
        numbers = ", ".join(map(str, dead))
        console.print(f"[yellow]left by a process that died, failed and queued once more: trials {numbers}[/]")
    try:
        with tracked(workspace, study) as tracker:
            _run_trials(workspace, search, tracker)
    except KeyboardInterrupt:
        if best_trials(study).keys() >= set(workspace.settings.budget.budgets):
            conclude(workspace, study)
        raise
    conclude(workspace, study)
    for part in workspace.each_budget():
        trials = [trial for trial in done_trials(study) if spent(trial).asked == part.settings.budget.budgets[0]]
        keep_with_study(part, write_ranked(part, trials), part.overlays.name)
    return study


def _run_trials(workspace: Workspace, search: Search, tracker: Tracker) -> None:
    """Have the study's trials run, in this process or by workers that are launched."""
    study, target = search.study, workspace.settings.search.trials
    if workspace.settings.cluster.kind == "none":
        with interruptible(study, target), study_progress(study, target) as show:
            work(search, target, tracker, show)
    elif len(done_trials(study)) < target:
        fill(study, target)
        follow(workspace, study, launch(workspace, target - len(done_trials(study))))


def check(workspace: Workspace) -> None:
    """Say what would keep a search from running, before anything expensive.

    Raises:
        FlowpruneError: settings that do not go together, an unreachable storage, tracking store or budget.
    """
    check_services(workspace)
    if workspace.known_study is None:
        check_budget(workspace)


def check_services(workspace: Workspace) -> None:
    """Say what of a search's surroundings does not answer.

    Raises:
        FlowpruneError: settings that do not go together, an unreachable storage or tracking store.
    """
    check_pairing(workspace.settings)
    open_storage(workspace.settings.storage)
    check_tracking(workspace)
