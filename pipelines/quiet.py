"""What the libraries below say to the terminal, which is little."""

import logging
import warnings

import optuna
import transformers


def quieten_libraries() -> None:
    """Leave the terminal to flowprune: no progress bars or notices of the libraries below."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
