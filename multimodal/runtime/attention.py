"""Attention is observed, not requested: while a block is open, transformers' attention functions show their inputs.

They may also be run by another (:mod:`multimodal.runtime.windows`), as the backend that the model asks for.

No config and no module is changed, so a copy of a model, a config that two models share, or a user who chooses another
backend inside the block meet nothing of ours. Functions without an observer for the calling module pass straight on.
"""

import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

EAGER = "eager_attention_forward"

Observer = Callable[[Tensor, Tensor, Tensor, float, float | None], None]
Runner = Callable[..., Any]  # of (function, module, query, key, value, …)

_observers: WeakKeyDictionary[nn.Module, Observer] = WeakKeyDictionary()
_runners: WeakKeyDictionary[nn.Module, Runner] = WeakKeyDictionary()
_lock = threading.Lock()
_blocks = 0
_registry: dict[str, Any] = {}  # what the registry itself held before, by name; None: nothing of its own
_eager: dict[ModuleType, Any] = {}  # the eager attention of modelling files


@contextmanager
def observed_attention(observers: Mapping[nn.Module, Observer]) -> Iterator[None]:
    """Call each observer with (queries, keys, values, scaling, softcap) when an attention module inside its layer runs.

    Args:
        observers: by layer module; one may be called several times a forward.
    """
    inside = {inner: observer for layer, observer in observers.items() for inner in layer.modules()}
    with _held(_observers, inside):
        yield


@contextmanager
def run_attention(runners: Mapping[nn.Module, Runner]) -> Iterator[None]:
    """Have the attention function that a module asks for run by another, which is given it and its arguments.

    Args:
        runners: by attention module.
    """
    with _held(_runners, runners):
        yield


@contextmanager
def _held(kept: WeakKeyDictionary[nn.Module, Any], new: Mapping[nn.Module, Any]) -> Iterator[None]:
    if not new:
        yield
        return
    with _lock:
        _open(new)
        kept.update(new)
    try:
        yield
    finally:
        with _lock:
            for module in new:
                kept.pop(module, None)
            _close()


def _open(modules: Iterable[nn.Module]) -> None:
    global _blocks
    if not _blocks:
        for name, function in list(ALL_ATTENTION_FUNCTIONS.items()):
            _registry[name] = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
            ALL_ATTENTION_FUNCTIONS[name] = _observing(function)
    _blocks += 1
    for file in {sys.modules[type(module).__module__] for module in modules} - _eager.keys():
        if (function := getattr(file, EAGER, None)) is not None:  # each modelling file has its own
            _eager[file] = function
            setattr(file, EAGER, _observing(function))


def _close() -> None:
    global _blocks
    _blocks -= 1
    if _blocks:
        return
    for name, before in _registry.items():
        if before is None:
            del ALL_ATTENTION_FUNCTIONS[name]
        else:
            ALL_ATTENTION_FUNCTIONS[name] = before
    for file, function in _eager.items():
        setattr(file, EAGER, function)
    _registry.clear()
    _eager.clear()


def _observing(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, observed."""

    @functools.wraps(function)
    def forward(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (observer := _observers.get(module)) is not None:
            scaling = kwargs.get("scaling")
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            observer(query, key, value, scaling, kwargs.get("softcap"))
        if (runner := _runners.get(module)) is not None:
            return runner(function, module, query, key, value, *args, **kwargs)
        return function(module, query, key, value, *args, **kwargs)

    return forward
