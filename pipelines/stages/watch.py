"""Stage watch: follow a search whose workers were launched before, from this host or another."""

from pipelines.cluster import follow
from pipelines.results import as_searched, conclude
from pipelines.tracking import tracked
from pipelines.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Show progress until the study's target is met, then write what it found.

    Raises:
        FlowpruneError: there is no such study, or all its workers are gone.
    """
    study = workspace.study
    workspace = as_searched(workspace, study)
    with tracked(workspace, study):
        follow(workspace, study)
    conclude(workspace, study)
