"""What starts workers, by kind of cluster: a module with ``check``, ``launch``, ``alive``, ``why`` and ``cancel``."""

from types import ModuleType

from pipelines.cluster import local, ray, slurm

LAUNCHERS: dict[str, ModuleType] = {"local": local, "slurm": slurm, "ray": ray}
