"""The comparison in words: which method to use at which budget, what it costs, and how sure that is."""

from collections.abc import Sequence

from pipelines.comparison.contenders import DOWNSCALED
from pipelines.comparison.rows import Comparison, Row
from pipelines.comparison.statistics import Interval
from pipelines.comparison.tables import points

SHOWN = 4  # names that are listed


def verdicts(comparison: Comparison) -> list[str]:
    """One a budget, most first, of a few sentences."""
    return [" ".join(sentences(comparison, budget)) for budget, rows in comparison.budgets.items() if pruned(rows)]


def pruned(rows: Sequence[Row]) -> list[Row]:
    """The contenders that prune tokens, the most accurate first."""
    return [row for row in rows if row.variant != DOWNSCALED]


def sentences(comparison: Comparison, budget: float) -> list[str]:
    """What is to be said of one budget."""
    rows = comparison.budgets[budget]
    best, *others = pruned(rows)
    what = "right" if comparison.known else "as unpruned"
    full = "" if not comparison.known else f" (unpruned {comparison.unpruned.accuracy.mean:.1%})"
    said = [
        f"At {comparison.measure} {budget:g} use {best.name}: {best.accuracy.mean:.1%} {what}{full}, "
        f"first token {best.speed_up:.2f}× as fast, {best.kv_share:.0%} of the KV bytes."
    ]
    if best.over_random is not None:
        said.append(f"It {_against(best.over_random)} random tokens: {points(best.over_random)} points.")
    else:
        said.append("Nothing here is more accurate than random tokens.")
    tied = [row for row in others if row.over_other is not None and row.over_other.high >= 0]
    if others and best.over_other is not None and not tied:
        said.append(f"It beats the next, {others[0].name}: {points(best.over_other)} points.")
    if tied:
        said.append(f"It cannot be told apart from {_listed([row.name for row in tied])}.")
        fastest = max([best, *tied], key=lambda row: row.speed_up)
        said += [] if fastest is best else [f"Of these, {fastest.name} is the fastest ({fastest.speed_up:.2f}×)."]
    return [*said, f"It is the best in {best.best_share or 0:.0%} of the resamples.", *served(rows)]


def served(rows: Sequence[Row]) -> list[str]:
    """What it costs that an engine is to serve the config, said of the most accurate one that it can."""
    row = next((row for row in rows if row.over_unrestricted is not None), None)
    if row is None or row.unrestricted_milliseconds is None:
        return []
    theirs = row.unrestricted_milliseconds
    beside = f"beside {row.method} tuned without that limit, at equal time to the first token,"
    if theirs > row.milliseconds * (1 + 1e-9):
        beside = f"{row.method} tuned without that limit is never as fast, and beside the fastest ({theirs:.1f} ms)"
    return [
        f"Of what can be served, {row.name} is the most accurate: {row.accuracy.mean:.1%}, first token in "
        f"{row.milliseconds:.1f} ms; {beside} that is {points(row.over_unrestricted)} points."
    ]


def _against(lead: Interval) -> str:
    """How sure a lead is, as a verb."""
    if lead.holds_zero:
        return "ties with"
    return "beats" if lead.mean > 0 else "is behind"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first few of many."""
    shown, more = names[:SHOWN], len(names) - SHOWN
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
