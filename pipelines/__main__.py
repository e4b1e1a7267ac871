"""The command line: a thin Hydra app that checks the configuration and runs its stages in order."""

import importlib
import os
import re
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.console import console
from pipelines.extensions import load_extensions
from pipelines.quiet import quieten_libraries
from pipelines.settings import MEASURES, check_settings, register_resolvers

USER_ERROR, CRASH = 2, 70
OF_ONE_CONFIG = ("validate", "export", "maps", "generate", "benchmark")  # run for each budget of search=pareto

OPEN = ("method.fixed.", "method.ranges.", "method.untuned.parameters.")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def app(cfg: DictConfig) -> None:
    """Run the stages of a composed configuration."""
    try:
        settings = check_settings(cfg)
        load_extensions(settings.extensions)
        for stage in ("search", "compare"):  # said before other stages spend their time
            if stage in settings.stages:
                importlib.import_module(f"pipelines.{stage}").check(settings)
        for stage in settings.stages:
            console.rule(f"[bold]{stage}")
            for each in settings.each_budget() if stage in OF_ONE_CONFIG else [settings]:
                importlib.import_module(f"pipelines.{stage}").run(each)
    except FlowpruneError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what is finished is kept, the same command goes on.[/]")
        sys.exit(130)
    except Exception:
        console.print_exception()
        sys.exit(CRASH)


def main() -> None:
    """Entry point of ``flowprune``."""
    quieten_libraries()
    register_resolvers()
    sys.argv[1:] = spelt_out(sys.argv[1:])
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # raise a bad override, which is said below in one sentence
    try:
        app()
    except (HydraException, OmegaConfBaseException) as error:
        console.print(f"[bold red]error:[/] {escape(override_sentence(error))}", highlight=False, soft_wrap=True)
        sys.exit(USER_ERROR)


def spelt_out(arguments: list[str]) -> list[str]:
    """The command line as Hydra wants it: ``++`` before keys of groups that hold any key, and a budget's own file."""
    measures = [match[1] for argument in arguments if (match := re.match(r"budget\.(\w+)=", argument))]
    if measures and measures[0] in MEASURES[1:] and not any(argument.startswith("budget=") for argument in arguments):
        arguments = [f"budget={measures[0]}", *arguments]
    return [f"++{argument}" if argument.startswith(OPEN) else argument for argument in arguments]


def override_sentence(error: Exception) -> str:
    """What Hydra says of a bad override, as one sentence."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Available options") for line in others):
        start = next(number for number, line in enumerate(others) if line.startswith("Available options"))
        options = [line for line in others[start + 1 :] if not line.startswith(("Config search path", "provider="))]
        return f"{first}: choose one of {', '.join(options)}."
    if first.startswith("Could not override"):
        return f"{first.rstrip('.')}: there is no such key; see flowprune --cfg job, or put + before it to add one."
    return f"{first.rstrip('.')}: see flowprune --cfg job."


if __name__ == "__main__":
    main()
