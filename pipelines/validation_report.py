"""validate's report, ``validation.json``: read here alone, with whether it is of a config."""

import json
from typing import Any

from multimodal import PruningConfig
from pipelines.workspace import Workspace

UNTIL_EXPORT = {"heldout_discrepancy": None, "heldout_digest": None}  # which export adds from the report


def read_validation(workspace: Workspace) -> dict[str, Any] | None:
    """What validate found last; None where it has not run.

    Args:
        workspace: of the budget.
    """
    if not workspace.validation.exists():
        return None
    report: dict[str, Any] = json.loads(workspace.validation.read_text(encoding="utf-8"))
    return report


def validation_of(workspace: Workspace, config: PruningConfig) -> dict[str, Any] | None:
    """What validate found of this very config; None where it measured another, or none.

    Args:
        workspace: of the budget.
        config: tuned, or exported from that.
    """
    report, origin = read_validation(workspace), config.provenance
    if report is None or report["tuned"] is None or origin is None:
        return None
    same = report["tuned"] | UNTIL_EXPORT == origin.model_dump(mode="json") | UNTIL_EXPORT
    return report if same else None
