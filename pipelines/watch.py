"""Stage watch: follow a search whose workers were launched before, from this host or another."""

from multimodal import FlowpruneError
from pipelines.cluster import follow
from pipelines.search import conclude, tracked
from pipelines.settings import Settings
from pipelines.storage import known_study, named


def run(settings: Settings) -> None:
    """Show progress until the study's target is met, then write what it found.

    Raises:
        FlowpruneError: there is no such study, or all its workers are gone.
    """
    study = known_study(settings)
    if study is None:
        raise FlowpruneError(
            f"{named(settings.storage)} has no study {settings.study!r}: run stages=[search] first, or set study=NAME."
        )
    with tracked(settings, study):
        follow(settings, study)
    conclude(settings, study)
