"""The comparison as tables: at the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAVY
from rich.markup import escape
from rich.table import Table

from pipelines.comparison.rows import Comparison, Row
from pipelines.comparison.statistics import Interval

COLUMNS = ("right", "lead", "hard", "agree", "discr.", "ret.", "KV", "speed")


def budget_table(comparison: Comparison, budget: float) -> Table:
    """All contenders at one budget, the most accurate first, beneath the unpruned model; ``ret.`` is the retention."""
    hard = comparison.hard[budget]
    title = f"{comparison.measure} {budget:g}: {comparison.samples} held-out samples, {hard} hard; lead over random"
    table = Table(title=title, box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in COLUMNS if comparison.known else ("agree", *COLUMNS[1:3], *COLUMNS[4:]):
        table.add_column(column, justify="right", no_wrap=True)
    for row in (comparison.unpruned, *comparison.budgets[budget]):
        table.add_row(escape(row.name), *_cells(row, comparison.known))
    return table


def _cells(row: Row, known: bool) -> Sequence[str]:
    agree = [f"{row.agreement:.1%}"] if known else []
    return (
        f"{row.accuracy.mean:.1%}",
        _short(row.over_random),
        "–" if row.hard is None else f"{row.hard.mean:.0%}",
        *agree,
        f"{row.discrepancy:.3f}",
        f"{row.retention:.3f}",
        f"{row.kv_share:.0%}",
        f"{row.speed_up:.2f}×",
    )


def _short(lead: Interval | None) -> str:
    return "–" if lead is None else f"{100 * lead.mean:+.0f} ± {50 * (lead.high - lead.low):.0f}"


def points(lead: Interval | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if lead is None:
        return "–"
    return f"{100 * lead.mean:+.1f} [{100 * lead.low:.0f}, {100 * lead.high:.0f}]"


def kinds_table(comparison: Comparison, budget: float) -> Table:
    """Accuracy by kind of question at one budget."""
    table = Table(title=f"accuracy by kind of question, {comparison.measure} {budget:g}", box=SIMPLE_HEAVY)
    table.add_column("", no_wrap=True)
    for kind, count in comparison.kinds.items():
        table.add_column(escape(f"{kind.replace('_', ' ')} ({count})"), justify="right")
    for row in (comparison.unpruned, *comparison.budgets[budget]):
        table.add_row(escape(row.name), *(f"{row.kinds[kind]:.0%}" for kind in comparison.kinds))
    return table


def predictors_table(comparison: Comparison) -> Table:
    """How well measures that need no answers rank the contenders as accuracy does."""
    table = Table(title="rank correlation with accuracy, over all contenders and within a budget", box=SIMPLE_HEAVY)
    table.add_column("")
    groups = list(next(iter(comparison.predictors.values())))
    for group in groups:
        table.add_column(group, justify="right")
    for name, found in comparison.predictors.items():
        table.add_row(name, *(correlation(found[group]) for group in groups))
    return table


def correlation(value: float | None) -> str:
    """A rank correlation, or a dash where there are too few contenders."""
    return "–" if value is None else f"{value:+.2f}"
