"""conf/tracking: where MLflow logs."""

from pipelines.settings.group import Group, PathText


class TrackingSettings(Group):
    """conf/tracking."""

    uri: str
    artifacts: PathText | None
    experiment: str
