"""What a person at the terminal sees: one console, progress bars and tables of one look."""

import logging
import warnings
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


def progress_bar() -> Progress:
    """A progress bar: what, how many of how many, and times."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def counted(number: int, noun: str) -> str:
    """A number of things in words: ``1 worker``, ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def quieten_libraries() -> None:
    """Leave the terminal to flowprune: no progress bars or notices of the libraries below, which this imports."""
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    with suppress(ModuleNotFoundError):  # an image that only serves has none
        import optuna

        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
