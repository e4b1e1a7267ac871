"""The figures of validate's, benchmark's and compare's reports, under the names that MLflow has of all studies."""

from collections.abc import Mapping
from typing import Any

from multimodal.benchmark.variants import PRUNED, RECORDED
from pipelines.baselines import TUNED, UNPRUNED
from pipelines.comparison.rows import Row


def validated(report: Mapping[str, Any]) -> dict[str, float]:
    """Of ``validation.json``: the tuned config's, those of what it was compared with, and its lead over each."""
    found: dict[str, float | None] = {}
    for name, row in report["contenders"].items():
        prefix = "heldout_" if name == TUNED else f"{name}_"
        found[f"{prefix}accuracy"] = row["accuracy"]
        if name != UNPRUNED:
            found |= {f"{prefix}{figure}": row[figure] for figure in ("agreement", "discrepancy")}
            found["speed_up" if name == TUNED else f"{name}_speed_up"] = row["speed_up"]
        if name != TUNED:
            found[f"lead_over_{name}"], found[f"lead_over_{name}_interval"] = row["lead"]
    return _known(found)


def benchmarked(report: Mapping[str, Any]) -> dict[str, float]:
    """Of ``benchmark.json``: ratios of its first batch, which do not depend on the machine as seconds do."""
    rows = {row["variant"]: row for row in report["cases"][0]["rows"]}
    found: dict[str, float | None] = {"trial_speed_up": report["trial"]["released"] / report["trial"]["ours"]}
    for prefix, variant in {"": PRUNED, "recorded_": RECORDED}.items():
        for figure in ("first_token", "decoding"):
            before, after = rows[UNPRUNED][figure], rows[variant][figure]
            found[f"{prefix}{figure}_speed_up"] = before / after if before and after else None
    return _known(found)


def compared(row: Row, unpruned: Row) -> dict[str, float]:
    """Of a comparison's row: of the tuned config of a study."""
    found: dict[str, float | None] = {
        "heldout_accuracy": row.accuracy.mean,
        "heldout_agreement": row.agreement,
        "heldout_discrepancy": row.discrepancy,
        "speed_up": row.speed_up,
        "unpruned_accuracy": unpruned.accuracy.mean,
    }
    if row.over_random is not None:
        found["lead_over_random"] = row.over_random.mean
        found["lead_over_random_interval"] = (row.over_random.high - row.over_random.low) / 2
    return _known(found)


def registry_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a validated config that the model registry shows."""
    names = {"heldout_accuracy": "accuracy", "heldout_agreement": "agreement", "speed_up": "speed_up"}
    return {short: metrics[name] for name, short in names.items() if name in metrics}


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in found.items() if value is not None}
