"""Whose runs they are: the tags behind the UI's columns User and Source."""

import getpass
import socket


def origin_tags() -> dict[str, str]:
    """Who made a run, on which host, and with what."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": "flowprune",
        "mlflow.source.type": "LOCAL",
        "host": socket.gethostname(),
    }
