"""A short name of plain data."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def digest(description: Mapping[str, Any]) -> str:
    """A short digest of plain data, to tell whether two searches or caches are the same."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()[:16]
