"""Stage benchmark: what pruning costs and saves on this machine, as ratios inside one run."""

import json
import time
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAVY
from rich.markup import escape
from rich.table import Table

from multimodal.benchmark.device import measure_peaks
from multimodal.benchmark.measure import describe, measure_case
from multimodal.benchmark.models import read_size
from multimodal.benchmark.sweeping import Axes, measure_sweep
from multimodal.benchmark.tables import Grid, inside, on_host, speed, swept
from multimodal.benchmark.timing import Effort
from multimodal.benchmark.variants import at_retention
from pipelines.console import console
from pipelines.figures.break_even import plot_break_even
from pipelines.measured import open_measured
from pipelines.report_metrics import benchmarked
from pipelines.tracking import log_with_study
from pipelines.trial_time import TrialTime, measure_trial
from pipelines.workspace import Workspace


def run(workspace: Workspace) -> dict[str, Any]:
    """Measure, print and write ``benchmark.json``; returns what it holds.

    Raises:
        FlowpruneError: the config does not fit the model, or a size or retention of the sweep cannot be.
    """
    settings, own = workspace.settings, workspace.settings.benchmark
    axes = Axes([read_size(size) for size in own.sizes], own.batches, own.retentions, own.text_tokens)
    measured = open_measured(workspace)
    subject, model = measured.subject, measured.subject.model
    config_at = partial(at_retention, subject.config, subject.modules.geometry.text_layers)
    for retention in own.retentions if own.sweep else ():
        config_at(retention)
    peaks = measure_peaks(model.device, model.dtype)
    until = None if own.minutes is None else time.monotonic() + 60 * own.minutes
    effort = Effort(own.repeats, own.new_tokens, until)
    cases = [measure_case(subject, batch, effort, peaks, {}) for batch in own.batches]
    for case in cases:
        for grid in (speed(case), inside(case), on_host(case)):
            _print(grid)
    trial = measure_trial(measured, settings.search.batch_size, settings.seed, own.repeats)
    _print_trial(trial)
    sweep = measure_sweep(subject.name, subject.modules, axes, config_at, effort) if own.sweep else None
    report = describe(model, peaks).model_copy(update={"cases": cases, "sweep": sweep})
    found = report.model_dump(mode="json") | {"trial": asdict(trial)}
    workspace.folder.mkdir(parents=True, exist_ok=True)
    workspace.benchmark.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(f"report: {workspace.benchmark}")
    if report.sweep is not None:
        _print(swept(report.sweep))
        plot_break_even(report.sweep, report.device, workspace.break_even)
        console.print(f"picture: {workspace.break_even}")
    if workspace.tuned.exists() and own.config is None:
        log_with_study(workspace, benchmarked(found))
    return found


def _print(grid: Grid) -> None:
    table = Table(title=escape(grid.title), box=SIMPLE_HEAVY)
    for number, column in enumerate(grid.columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for row in grid.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    for note in grid.notes:
        console.print(note, highlight=False, markup=False)


def _print_trial(trial: TrialTime) -> None:
    ours, prefill, released = (f"{1000 * each:.2f} ms" for each in (trial.ours, trial.prefill, trial.released))
    console.print(
        f"a search trial, per sample: {ours}, of which {prefill} are the pruned prefill "
        f"([bold]{trial.ours / trial.prefill - 1:.1%}[/] on top); the released way: {released} "
        f"([bold]{trial.released / trial.ours:.1f}×[/] as much)"
    )
