"""Command lines that are printed: whole, so that they work in any folder."""

import shlex
from pathlib import Path

from pipelines.settings import FileStorage
from pipelines.workspace import Workspace
from search.tracking.store import overrides_of


def command(workspace: Workspace, stage: str) -> str:
    """The command that runs a stage on the same study, storage, tracking store and folder."""
    settings = workspace.settings
    storage, tracking = settings.storage, settings.tracking
    given: dict[str, object] = {"study": settings.study, "model.name": settings.model.name, "storage": storage.kind}
    where = storage.model_dump(exclude={"kind"}, exclude_none=True)
    if isinstance(storage, FileStorage):
        where["path"] = str(Path(storage.path).absolute())
    given |= {f"storage.{name}": value for name, value in where.items()}
    given |= overrides_of(tracking.uri)
    given["tracking.experiment"] = tracking.experiment
    if tracking.artifacts is not None:
        given["tracking.artifacts"] = Path(tracking.artifacts).absolute()
    if settings.extensions:  # whose methods the study's configs name
        given["extensions"] = f"[{','.join(settings.extensions)}]"
    given["output"] = Path(settings.output).absolute()
    return shlex.join(["flowprune", f"stages=[{stage}]", *(f"{name}={value}" for name, value in given.items())])
