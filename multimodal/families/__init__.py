"""Model families: one file a family. Every module of this package is imported, so a new file is a new family."""

import importlib
import pkgutil

from multimodal.families.family import Family, check_supported, family_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Family", "check_supported", "family_of"]
