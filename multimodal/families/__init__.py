"""Model families: one file a family. Every module of this package is imported, so a new file is a new family.

A family is a :class:`Geometry`, what its config alone tells; :class:`Modules` finds the parts of a live model.
"""

import importlib
import pkgutil

from multimodal.families.geometry import Geometry, check_supported, geometry_of
from multimodal.families.modules import Modules, modules_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Geometry", "Modules", "check_supported", "geometry_of", "modules_of"]
