"""What a method or a family must meet, to be run on one's own; itself a pytest plugin, which gives the options.

``pytest -p multimodal.testing --pyargs multimodal.testing.methods --method my.py:My`` tells whether a method is right,
and ``pytest -p multimodal.testing --pyargs multimodal.testing.families multimodal.testing.pruning --family my.py``
whether a family is. Without those options all that the package ships meet the same tests. Needs pytest.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

from multimodal.methods import Method

METHODS: list[type[Method]] = []  # of --method
T = TypeVar("T")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the two suites."""
    group = parser.getgroup("multimodal.testing")
    group.addoption("--method", metavar="FILE[:CLASS]", help="test the methods of a Python file, or one of them")
    group.addoption("--recorded", action="store_true", help="read prompts by recordings, wherever they can be")
    group.addoption("--family", metavar="FILE[:NAME]", help="test the families in a file's FAMILIES, or one of them")


def pytest_configure(config: pytest.Config) -> None:
    """Import the user's file before the suites are collected, and let recordings read where they are asked for."""
    if config.getoption("--recorded"):
        from multimodal.testing.recorded import read_by_recordings

        read_by_recordings()
    if given := config.getoption("--method"):
        module, name = imported("--method", given)
        own = {key: kind for key, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, Method)}
        found = {key: kind for key, kind in own.items() if kind.__module__ == module.__name__}
        METHODS[:] = chosen("--method", given, found, name).values()
    if given := config.getoption("--family"):
        from multimodal.testing.tiny_models import FAMILIES

        module, name = imported("--family", given)
        found = chosen("--family", given, getattr(module, "FAMILIES", {}), name)
        FAMILIES.clear()
        FAMILIES.update(found)


def imported(option: str, given: str) -> tuple[ModuleType, str]:
    """The module of ``FILE[:NAME]``, and the name."""
    file, _, name = given.partition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise pytest.UsageError(f"{option}: {file} is no Python file that exists: give the path of one.")
    spec = importlib.util.spec_from_file_location(f"tested_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are resolved there
    spec.loader.exec_module(module)
    return module, name


def chosen(option: str, given: str, found: dict[str, T], name: str) -> dict[str, T]:
    """All that was found in a file, or the one that was asked for."""
    if not found or (name and name not in found):
        there = f"it has {', '.join(found)}" if found else "it has none"
        raise pytest.UsageError(f"{option}: {given} has not what is to be tested ({there}).")
    return {name: found[name]} if name else found
