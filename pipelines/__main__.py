"""The command line: a thin Hydra app that checks the configuration and runs its stages in order.

What a user typed is checked before torch, transformers or MLflow are imported, which takes seconds.
"""

import importlib
import os
import sys
from types import ModuleType

try:
    import hydra
except ModuleNotFoundError:
    sys.exit("error: the command line needs more than the library: pip install 'flowprune[search]'.")
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.command_line import override_sentence, spelt_out
from pipelines.console import console, quieten_libraries
from pipelines.full_disk import full_disk
from pipelines.preconditions import check_preconditions
from pipelines.settings import check_settings, register_resolvers
from pipelines.stopping import TERMINATED, stop_on
from pipelines.workspace import Workspace

USER_ERROR, CRASH = 2, 70
OF_ONE_CONFIG = ("validate", "export", "maps", "generate", "benchmark")  # run for each budget of search=pareto


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def app(cfg: DictConfig) -> None:
    """Run the stages of a composed configuration."""
    settings = None
    try:
        settings = check_settings(cfg)
        run_stages(Workspace(settings))
    except FlowpruneError as error:
        say_error(str(error))
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what is finished is kept, the same command goes on.[/]")
        sys.exit(130)
    except Exception as error:
        if settings is not None and (full := full_disk(error, settings)) is not None:
            say_error(full)
            sys.exit(USER_ERROR)
        console.print_exception()
        sys.exit(CRASH)


def run_stages(workspace: Workspace) -> None:
    """Check what every stage needs, then run them in order.

    Raises:
        FlowpruneError: a user's mistake.
    """
    settings = workspace.settings
    check_preconditions(workspace)
    quieten_libraries()
    importlib.import_module("pipelines.extensions").load_extensions(settings.extensions)
    stages: dict[str, ModuleType] = {
        name: importlib.import_module(f"pipelines.stages.{name}") for name in settings.stages
    }
    for checked in ("export", "search", "compare"):  # said before other stages spend their time
        if checked in stages:
            stages[checked].check(workspace)
    for name in settings.stages:
        console.rule(f"[bold]{name}")
        for each in workspace.each_budget() if name in OF_ONE_CONFIG else [workspace]:
            stages[name].run(each)


def main() -> None:
    """Entry point of ``flowprune``."""
    register_resolvers()
    stop_on(TERMINATED)
    sys.argv[1:] = spelt_out(sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise a bad override, which is said below in one sentence
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        say_error(override_sentence(error))
        sys.exit(USER_ERROR)


def say_error(sentence: str) -> None:
    """Print a user's mistake."""
    console.print(f"[bold red]error:[/] {escape(sentence)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
