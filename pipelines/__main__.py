"""The command line: a thin Hydra app that checks the configuration and runs its stages in order."""

import importlib
import logging
import sys
import warnings

import hydra
import optuna
import transformers
from omegaconf import DictConfig
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.settings import check_settings, register_resolvers

USER_ERROR, CRASH = 2, 70


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def app(cfg: DictConfig) -> None:
    """Run the stages of a composed configuration."""
    try:
        settings = check_settings(cfg)
        if "search" in settings.stages:  # said before other stages spend their time
            importlib.import_module("search.tracking").connect(settings.tracking.uri)
        for stage in settings.stages:
            console.rule(f"[bold]{stage}")
            importlib.import_module(f"pipelines.{stage}").run(settings)
    except FlowpruneError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what is finished is kept, the same command goes on.[/]")
        sys.exit(130)
    except Exception:
        console.print_exception()
        sys.exit(CRASH)  # Hydra's own code would be that of a bad override


def quieten_libraries() -> None:
    """Leave the terminal to flowprune: no progress bars or notices of the libraries below."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.WARNING)


def main() -> None:
    """Entry point of ``flowprune``."""
    quieten_libraries()
    register_resolvers()
    try:
        app()
    except SystemExit as stop:
        # Hydra's own sentence about a bad override has been printed
        sys.exit(USER_ERROR if stop.code == 1 else stop.code)


if __name__ == "__main__":
    main()
