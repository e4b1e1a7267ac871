"""MLflow tracking: one parent run a study, one child run a trial. Optuna keeps the truth; MLflow is made to agree."""

from search.tracking.comparison import Entry, log_comparison
from search.tracking.facts import trial_metrics
from search.tracking.fetch import config_of_run, config_registered, study_of_run
from search.tracking.files import keep_files
from search.tracking.findings import Samples, log_found
from search.tracking.moved_store import follow_moved
from search.tracking.pages import studies_page, trials_page
from search.tracking.registry import register
from search.tracking.runs import StudyRuns
from search.tracking.store import LOST, check_store, open_store, unreachable
from search.tracking.tracker import Tracker

__all__ = [
    "LOST",
    "Entry",
    "Samples",
    "StudyRuns",
    "Tracker",
    "check_store",
    "config_of_run",
    "config_registered",
    "follow_moved",
    "keep_files",
    "log_comparison",
    "log_found",
    "open_store",
    "register",
    "studies_page",
    "study_of_run",
    "trial_metrics",
    "trials_page",
    "unreachable",
]
