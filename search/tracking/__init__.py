"""MLflow tracking: one parent run a study, one child run a trial. Optuna keeps the truth; MLflow is made to agree."""

from search.tracking.comparison import Entry, log_comparison
from search.tracking.facts import trial_metrics
from search.tracking.fetch import config_of_run, config_registered, study_of_run
from search.tracking.files import keep_files
from search.tracking.pages import trials_page
from search.tracking.registry import register
from search.tracking.runs import StudyRuns
from search.tracking.store import LOST, check_store, open_store, unreachable
from search.tracking.tracker import Tracker

__all__ = [
    "LOST",
    "Entry",
    "StudyRuns",
    "Tracker",
    "check_store",
    "config_of_run",
    "config_registered",
    "keep_files",
    "log_comparison",
    "open_store",
    "register",
    "study_of_run",
    "trial_metrics",
    "trials_page",
    "unreachable",
]
