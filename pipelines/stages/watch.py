"""Stage watch: follow a search whose workers were launched before, from this host or another."""

from pipelines.cluster import follow
from pipelines.settings import Settings
from pipelines.stages.search import conclude, tracked
from pipelines.storage import existing_study


def run(settings: Settings) -> None:
    """Show progress until the study's target is met, then write what it found.

    Raises:
        FlowpruneError: there is no such study, or all its workers are gone.
    """
    study = existing_study(settings)
    with tracked(settings, study):
        follow(settings, study)
    conclude(settings, study)
