"""The one exception a user's mistake raises."""


class FlowpruneError(ValueError):
    """A user's mistake. The message is one sentence that names what is wrong and what to do about it."""
