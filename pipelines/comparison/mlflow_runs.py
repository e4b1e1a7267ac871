"""The comparison in MLflow: a parent run, and a child run a contender and budget."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from multimodal import FlowpruneError
from pipelines.comparison.contenders import label
from pipelines.comparison.files import metrics
from pipelines.comparison.rows import Comparison, Row
from pipelines.comparison.verdict import verdicts
from pipelines.console import console
from pipelines.workspace import Workspace
from search.tracking import Entry, log_comparison


def track(workspace: Workspace, comparison: Comparison, files: Sequence[Path]) -> None:
    """Log it; a store that does not take it is said, and stops nothing.

    Args:
        workspace: names the tracking store.
        comparison: what was found.
        files: kept with the parent run.
    """
    entries = [_entry(workspace, comparison, row) for row in comparison.rows]
    tracking = workspace.settings.tracking
    try:
        address = log_comparison(
            tracking.uri,
            tracking.experiment,
            None if tracking.artifacts is None else Path(tracking.artifacts),
            f"compare {workspace.settings.compare.name}",
            "\n\n".join(verdicts(comparison)),
            entries,
            files,
        )
    except FlowpruneError as error:
        console.print(f"[yellow]{escape(str(error))}[/]")
    else:
        console.print(f"in the MLflow UI: {address}", soft_wrap=True, highlight=False)


def _entry(workspace: Workspace, comparison: Comparison, row: Row) -> Entry:
    at = "" if row.budget is None else f", {comparison.measure} {row.budget:g}"
    params = {"model": workspace.settings.model.name, "method": row.method, "variant": row.variant}
    if row.budget is not None:
        params |= {"budget_measure": comparison.measure, "budget": f"{row.budget:g}"}
    return Entry(label(row.method, row.variant) + at, params, metrics(row))
