"""A user's own Python files, which hold methods: imported before a method is looked up, in every process."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from multimodal import FlowpruneError
from search.digest import digest


def load_extensions(paths: Sequence[str]) -> None:
    """Import each file once; what it defines is known from then on.

    Args:
        paths: of Python files.

    Raises:
        FlowpruneError: one does not exist, cannot be imported, or names a method that there is already.
    """
    for path in map(Path, paths):
        name = f"flowprune_extension_{digest({'path': str(path)})}"
        if name not in sys.modules:
            _load(path, name)


def _load(path: Path, name: str) -> None:
    if path.suffix != ".py" or not path.is_file():
        raise FlowpruneError(f"extensions: {path} is no Python file that exists: give the path of one.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are resolved there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, FlowpruneError) or not isinstance(error, Exception):
            raise
        said = " ".join(str(error).split())
        raise FlowpruneError(
            f"extensions: {path} cannot be imported ({type(error).__name__}: {said}): mend it."
        ) from error
