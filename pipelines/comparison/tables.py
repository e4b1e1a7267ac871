"""The comparison as tables: at the terminal, and as one CSV file."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.markup import escape
from rich.table import Table

from pipelines.comparison.statistics import Interval
from pipelines.comparison.summary import Comparison, Row

COLUMNS = ("accuracy", "over random", "hard", "agree", "discrep.", "retent.", "KV", "speed-up")


def budget_table(comparison: Comparison, budget: float) -> Table:
    """All contenders at one budget, the most accurate first, beneath the unpruned model."""
    title = f"{comparison.measure} {budget:g}: {comparison.samples} held-out samples, {comparison.hard[budget]} hard"
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
        f"{row.discrepancy:.4f}",
        f"{row.retention:.3f}",
        f"{row.kv_share:.0%}",
        f"{row.speed_up:.2f}×",
    )


def _short(lead: Interval | None) -> str:
    return "–" if lead is None else f"{100 * lead.mean:+.1f} ± {50 * (lead.high - lead.low):.1f}"


def points(lead: Interval | None) -> str:
    """A difference of shares in percentage points, with its interval."""
    if lead is None:
        return "–"
    return f"{100 * lead.mean:+.1f} [{100 * lead.low:+.1f}, {100 * lead.high:+.1f}]"


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


def write_csv(comparison: Comparison, path: Path) -> Path:
    """Write one line a contender and budget; returns the path."""
    rows = [_flat(row) for row in comparison.rows]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _flat(row: Row) -> dict[str, object]:
    who: dict[str, object] = {"method": row.method, "variant": row.variant, "budget": row.budget, "trials": row.trials}
    kinds = {f"accuracy_{kind}": value for kind, value in row.kinds.items()}
    return who | metrics(row) | kinds | {"remark": row.remark}


def metrics(row: Row) -> dict[str, float]:
    """A contender's figures by name, without those that it has not."""
    found: dict[str, float] = {
        "heldout_accuracy": row.accuracy.mean,
        "heldout_accuracy_low": row.accuracy.low,
        "heldout_accuracy_high": row.accuracy.high,
        "agreement": row.agreement,
        "discrepancy": row.discrepancy,
        "next_token_kl": row.divergence,
        "retention": row.retention,
        "flops_share": row.flops_share,
        "kv_share": row.kv_share,
        "first_token_ms": row.milliseconds,
        "speed_up": row.speed_up,
    }
    leads = {"hard_accuracy": row.hard, "lead_over_random": row.over_random, "lead_over_best_other": row.over_other}
    for name, lead in leads.items():
        if lead is not None:
            found |= {name: lead.mean, f"{name}_low": lead.low, f"{name}_high": lead.high}
    return found | ({} if row.best_share is None else {"best_share": row.best_share})
