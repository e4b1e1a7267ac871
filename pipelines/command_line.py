"""From what a user types to what Hydra reads, and from what Hydra says to one sentence."""

import re
import shlex
from pathlib import Path
from typing import get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from pipelines.settings import MEASURES, Stage

CONFIGS = "serve.configs."
OPEN = ("method.fixed.", "method.ranges.", "method.untuned.parameters.", CONFIGS)  # groups that hold any key
TEXT = ("generate.question", "data.system", "data.prefix", "data.suffix")
HOME = re.compile(r"(?:^|(?<=[\[,]))~(?=$|[/,\]])")  # at the start of a value, or of one in a list
PATHS = (
    *("model.path", "data.path", "output", "cache", "storage.path"),
    *("generate.image", "generate.config", "maps.config", "benchmark.config"),
    *("engine.python", "engine.model", "serve.image_folder"),
)


def spelt_out(arguments: list[str]) -> list[str]:
    """The command line as Hydra wants it: ``stages=[…]`` for names of stages, free text and paths in quotes,
    ``++`` before keys of groups that hold any key, a budget's own file, and the home folder for ``~``, which shells
    leave after an equals sign.
    """
    if stages := [argument for argument in arguments if argument in get_args(Stage)]:
        rest = [argument for argument in arguments if argument not in stages]
        arguments = [*rest, f"stages=[{','.join(stages)}]"]
    arguments = [_at_home(argument) for argument in arguments]
    measures = [match[1] for argument in arguments if (match := re.match(r"budget\.(\w+)=", argument))]
    if measures and measures[0] in MEASURES[1:] and not any(argument.startswith("budget=") for argument in arguments):
        arguments = [f"budget={measures[0]}", *arguments]
    if not {"-m", "--multirun"} & set(arguments):  # where a comma separates runs
        arguments = [quoted(argument) for argument in arguments]
    return [f"++{argument}" if argument.startswith(OPEN) else argument for argument in arguments]


def _at_home(argument: str) -> str:
    key, _, value = argument.partition("=")
    return argument if key in TEXT else f"{key}={HOME.sub(lambda _: str(Path.home()), value)}" if value else argument


def quoted(argument: str) -> str:
    """``key=value`` with a value that Hydra reads as it was typed, where the key holds free text or a path."""
    key, equals, value = argument.partition("=")
    if (
        not equals
        or not (key in (*TEXT, *PATHS) or key.startswith(CONFIGS))
        or value in ("", "null")
        or _is_quoted(argument)
    ):
        return argument
    if key in TEXT:
        value = value.replace("${", "\\${")  # a dollar sign, no interpolation
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return f"{key}='" + re.sub(r"(\\+)\Z", r"\1\1", value) + "'"


def _is_quoted(argument: str) -> bool:
    try:
        return isinstance(OverridesParser.create().parse_override(argument)._value, QuotedString)
    except HydraException:
        return False


def override_sentence(error: Exception) -> str:
    """What Hydra says of a bad override, as one sentence."""
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()]
    if (override := getattr(error, "override", None)) is not None:
        key, equals, value = override.partition("=")
        if not equals:
            return f"{override} is no key=value: give what to override, as in {override}=VALUE."
        typed = shlex.quote(f'{key}="{value}"')
        return f"{override} cannot be read as key=value: put quotes inside the shell's, as in {typed}."
    if any(line.startswith("Available options") for line in others):
        start = next(number for number, line in enumerate(others) if line.startswith("Available options"))
        options = [line for line in others[start + 1 :] if not line.startswith(("Config search path", "provider="))]
        return f"{first}: choose one of {', '.join(options)}."
    if first.startswith("Ambiguous value"):
        return f"{first.rstrip('.')}: give a list in brackets, as in key=[a,b]."
    if first.startswith("Could not override"):
        return f"{first.rstrip('.')}: there is no such key; see flowprune --cfg job, or put + before it to add one."
    return f"{first.rstrip('.')}: see flowprune --cfg job."
