"""conf/tracking: where MLflow logs."""

from pipelines.settings.group import Group


class TrackingSettings(Group):
    """conf/tracking."""

    uri: str
    artifacts: str | None
    experiment: str
