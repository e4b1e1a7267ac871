"""The comparison as files for other programs and documents: CSV, JSON and a short Markdown table."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

from pipelines.comparison.contenders import DOWNSCALED
from pipelines.comparison.rows import Comparison, Row

ROWS, WHOLE, SHORT = "comparison.csv", "comparison.json", "comparison.md"


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write one line a contender and budget, all that is known, and what a README shows; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WHOLE).write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")
    (folder / SHORT).write_text(short_table(comparison), encoding="utf-8")
    return [_write_csv(comparison, folder / ROWS), folder / WHOLE, folder / SHORT]


def short_table(comparison: Comparison) -> str:
    """Accuracy by contender and budget in Markdown, best first at the least budget, the best of each budget bold."""
    budgets = list(comparison.budgets)
    cells = {(row.name, row.budget): row for row in comparison.rows}
    names = list(dict.fromkeys(row.name for budget in reversed(budgets) for row in comparison.budgets[budget]))
    lines = [f"| {comparison.measure} | " + " | ".join(f"{budget:g}" for budget in budgets) + " |"]
    lines.append("| --- |" + " --- |" * len(budgets))
    full = f"{100 * comparison.unpruned.accuracy.mean:.1f}"
    lines.append("| unpruned |" + f" {full} |" * len(budgets))
    best = {budget: max(_accuracy(row) for row in rows) for budget, rows in comparison.budgets.items()}
    for name in names:
        shown = [_shown(cells.get((name, budget)), best[budget]) for budget in budgets]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _accuracy(row: Row) -> float:
    return 0.0 if row.variant == DOWNSCALED else row.accuracy.mean


def _shown(row: Row | None, best: float) -> str:
    if row is None:
        return "–"
    text = f"{100 * row.accuracy.mean:.1f}"
    return f"**{text}**" if _accuracy(row) == best else text


def _write_csv(comparison: Comparison, path: Path) -> Path:
    rows = [_flat(row) for row in comparison.rows]
    columns = list(dict.fromkeys(column for row in rows for column in row))
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
    leads |= {"lead_over_unrestricted": row.over_unrestricted}
    for name, lead in leads.items():
        if lead is not None:
            found |= {name: lead.mean, f"{name}_low": lead.low, f"{name}_high": lead.high}
    return found | ({} if row.best_share is None else {"best_share": row.best_share})
