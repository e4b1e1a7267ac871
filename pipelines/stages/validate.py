"""Stage validate: is the tuned config really better, on samples that the search never saw?"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from statistics import mean, stdev

import torch
from rich.box import SIMPLE_HEAVY
from rich.markup import escape
from rich.table import Table

from multimodal import PruningConfig, prune
from multimodal.benchmark.stopwatch import Stopwatch
from pipelines.baselines import TUNED, UNPRUNED, UNRESTRICTED, contenders
from pipelines.calibration import observed
from pipelines.comparison.statistics import by_kind
from pipelines.console import console
from pipelines.data import Sample
from pipelines.grading import answer_all, grade
from pipelines.latency import study_latency
from pipelines.report_metrics import validated
from pipelines.restriction import served_method
from pipelines.space import make_space
from pipelines.tracking import keep_with_study, log_with_study, samples_of
from pipelines.workspace import Workspace
from search.objective import Objective

TIMED_BATCHES, TIMING_REPEATS = 4, 5


@dataclass(frozen=True)
class Row:
    """One contender on the held-out samples.

    Args:
        retention, kv_share, flops_share: of the unpruned model's.
        discrepancy: mean over samples.
        agreement: share of greedy answers equal to the unpruned model's.
        accuracy: mean score of the answers where right ones are known; None where none is.
        accuracy_by_kind: the same by kind of question.
        speed_up: of the language model's prefill, measured here, interleaved; of vision tower and prefill together
            where a contender prunes inside the tower.
        lead: tuned minus this accuracy, over the same samples (agreement where no answer at all is known), paired, with
            half its 95 % interval.
    """

    retention: float
    kv_share: float
    flops_share: float
    discrepancy: float
    agreement: float
    accuracy: float | None
    accuracy_by_kind: Mapping[str, float]
    speed_up: float
    lead: tuple[float, float]


def run(workspace: Workspace) -> dict[str, Row]:
    """Compare the tuned config with the unpruned model and the other contenders.

    Raises:
        FlowpruneError: there is no tuned config, or bad data.
    """
    tuned = workspace.config(None)
    opened = workspace.model
    samples = workspace.samples("heldout")
    cached = observed(workspace, samples, "heldout")
    objective = Objective(opened.modules, cached.samples, workspace.settings.search.batch_size, workspace.settings.seed)
    latency = study_latency(workspace, opened, cached, objective.workload)
    space = make_space(workspace.settings, opened.modules.geometry, objective.workload, opened.normalization, latency)
    configs = contenders(served_method(workspace.settings), space, tuned, workspace.unrestricted)
    answers = {name: answer_all(opened, samples, config, name)[0] for name, config in configs.items()}
    rows = _rows(samples, answers, configs, objective, workspace.settings.data.score)
    graded = sum(bool(sample.answers) for sample in samples)
    report = workspace.validation
    found = {
        "tuned": tuned.provenance and tuned.provenance.model_dump(mode="json"),
        "samples": len(samples),
        "graded": graded,
        "score": workspace.settings.data.score,
        "data_digest": cached.data_digest,
    }
    found["contenders"] = {name: asdict(row) for name, row in rows.items()}
    report.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(_table(rows, len(samples), graded))
    if any(row.accuracy_by_kind for row in rows.values()):
        console.print(_kinds_table(rows, samples))
    console.print(_verdict(rows))
    if UNRESTRICTED in rows:
        console.print(_cost_of_serving(rows, workspace.settings.serving.engine))
    console.print(f"report: {report}")
    keep_with_study(workspace, [report])
    samples_used = samples_of(workspace, "heldout", cached.data_digest, len(samples))
    log_with_study(workspace, validated(found), samples_used)
    return rows


def _rows(
    samples: Sequence[Sample],
    answers: Mapping[str, Sequence[str]],
    configs: Mapping[str, PruningConfig | None],
    objective: Objective,
    rule: str,
) -> dict[str, Row]:
    kinds = [sample.kind for sample in samples if sample.answers]
    scores = {
        name: [worth for each in zip(given, samples, strict=True) if (worth := grade(*each, rule)) is not None]
        for name, given in answers.items()
    }
    agrees = {
        name: [float(own == reference) for own, reference in zip(given, answers[UNPRUNED], strict=True)]
        for name, given in answers.items()
    }
    compared = scores if kinds else agrees
    seconds = _prefill_seconds(objective, configs)
    rows = {}
    for name, config in configs.items():
        shares = {"retention": 1.0, "kv_share": 1.0, "flops_share": 1.0} if config is None else objective.shares(config)
        rows[name] = Row(
            **shares,
            discrepancy=0.0 if config is None else mean(objective.evaluate(config)),
            agreement=mean(agrees[name]),
            accuracy=mean(scores[name]) if kinds else None,
            accuracy_by_kind=by_kind(scores[name], kinds),
            speed_up=seconds[UNPRUNED] / seconds[name],
            lead=_paired(compared[TUNED], compared[name]),
        )
    return rows


def _prefill_seconds(objective: Objective, configs: Mapping[str, PruningConfig | None]) -> dict[str, float]:
    device = objective.modules.model.device
    from_pixels = any(config is not None and config.method.tower is not None for config in configs.values())

    def prefill(config: PruningConfig | None) -> None:
        with torch.inference_mode(), prune(objective.modules.model, config) if config else nullcontext() as pruner:
            for batch in objective.batches[:TIMED_BATCHES]:
                objective.last_states(batch.to(device), pruner, from_pixels)

    watch = Stopwatch(device)
    for _ in range(1 + TIMING_REPEATS):
        for name, config in configs.items():
            watch.time(name, partial(prefill, config))
    return watch.medians()


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean difference and half of its 95 % interval, sample by sample."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    spread = stdev(differences) if len(differences) > 1 else 0.0
    return mean(differences), 1.96 * spread / math.sqrt(len(differences))


def _table(rows: Mapping[str, Row], samples: int, graded: int) -> Table:
    some = f", {graded} with known answers" if 0 < graded < samples else ""
    table = Table(title=f"{samples} held-out samples{some}", box=SIMPLE_HEAVY, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in ("retention", "discrep.", "agree", "accuracy", "KV", "speed-up", "tuned leads"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row.retention:.3f}",
            f"{row.discrepancy:.4f}",
            f"{row.agreement:.1%}",
            "–" if row.accuracy is None else f"{row.accuracy:.1%}",
            f"{row.kv_share:.0%}",
            f"{row.speed_up:.2f}×",
            "" if name == TUNED else f"{row.lead[0] * 100:+.1f} ± {row.lead[1] * 100:.1f}",
        )
    return table


def _kinds_table(rows: Mapping[str, Row], samples: Sequence[Sample]) -> Table:
    counts = Counter(sample.kind for sample in samples if sample.answers)
    table = Table(title="accuracy by kind of question", box=SIMPLE_HEAVY)
    table.add_column("")
    for name in rows:
        table.add_column(name, justify="right")
    for kind in rows[UNPRUNED].accuracy_by_kind:
        cells = (f"{row.accuracy_by_kind[kind]:.1%}" for row in rows.values())
        table.add_row(f"{escape(kind.replace('_', ' '))} ({counts[kind]})", *cells)
    return table


def _verdict(rows: Mapping[str, Row]) -> str:
    """Say plainly whether tuning helped."""
    rivals = {name: row for name, row in rows.items() if name not in (TUNED, UNPRUNED, UNRESTRICTED)}
    behind = [name for name, row in rivals.items() if row.lead[0] <= row.lead[1]]
    if behind:
        return f"[bold red]The tuned config is not better than {', '.join(behind)} by more than the noise.[/]"
    return "[bold green]The tuned config is better than every other at this budget, by more than the noise.[/]"


def _cost_of_serving(rows: Mapping[str, Row], engine: str | None) -> str:
    """What it costs that an engine is to serve the config, at the same budget."""
    tuned, other = rows[TUNED], rows[UNRESTRICTED]
    what = "agreement" if other.accuracy is None else "accuracy"
    return (
        f"What {engine} can serve has {100 * other.lead[0]:+.1f} ± {100 * other.lead[1]:.1f} points of {what} beside "
        f"the unrestricted config, with the prefill {tuned.speed_up:.2f}× as fast as unpruned, and that one's "
        f"{other.speed_up:.2f}×."
    )
