"""Hooks that belong to one module: in a copy of it, or in a pickle, they do nothing."""

from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import ref

import torch
from torch import nn


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a hook becomes in a copy of its module."""


class Hook:
    """A hook that copy.deepcopy and pickle leave behind; a compiled model runs it as it is.

    Args:
        function: the hook.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = torch.compiler.disable(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> str:
        return "_nothing"


class MethodHook:
    """Stands in front of one module's method while a block is open; a copy of the module has its own method.

    Args:
        module: whose method.
        name: of it.
        around: called with the method and its arguments, in its place.
    """

    def __init__(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        self._module, self._name, self._around = ref(module), name, torch.compiler.disable(around)
        self.__wrapped__ = getattr(module, name)
        self._before = vars(module).get(name)  # older transformers leave a module's own method on it
        setattr(module, name, self)

    def remove(self) -> None:
        """What was there before shows again."""
        if (module := self._module()) is None or vars(module).get(self._name) is not self:
            return
        if self._before is None:
            delattr(module, self._name)
        else:
            setattr(module, self._name, self._before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self.__wrapped__, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        module = self._module()
        copied = memo.get(id(module), module)
        return MethodType(getattr(type(copied), self._name), copied)
