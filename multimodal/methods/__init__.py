"""Pruning methods: one file a method. Every module of this package is imported, so a new file is a new method."""

import importlib
import pkgutil

from multimodal.methods.method import Method, VisualTokens, make_method, method_named
from multimodal.ranges import SearchRange
from multimodal.selection import Selection

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "SearchRange", "Selection", "VisualTokens", "make_method", "method_named"]
