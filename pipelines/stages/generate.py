"""Stage generate: one image, one question, answered with and without pruning."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from transformers import BatchFeature

from multimodal import PruningConfig, prune
from multimodal.benchmark.stopwatch import Stopwatch
from pipelines.console import console
from pipelines.data import Sample
from pipelines.data.asking import as_asked
from pipelines.data.conversations import ask
from pipelines.data.pictures import stored
from pipelines.data.sample import Medium
from pipelines.figures.overlay import write_overlay
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, greedy_answers, shown_layouts
from pipelines.settings import DataSettings
from pipelines.workspace import Workspace

REPEATS = 5


def run(workspace: Workspace) -> dict[str, str]:
    """Print both answers, what was kept and the time to the first token; returns the answers.

    Raises:
        FlowpruneError: there is no config or image, or they do not fit the model.
    """
    config = workspace.config(workspace.settings.generate.config)
    sample = _sample(workspace)
    opened = workspace.model
    inputs = build_inputs(opened, [sample])
    table = Table(title=escape(sample.question))
    for column in ("", "answer", "visual tokens by layer", "KV bytes", "first token"):
        table.add_column(column)
    configs = {"unpruned": None, "pruned": config}
    seconds = _seconds_to_first_token(opened, inputs, configs)
    answers = {}
    for name, applied in configs.items():
        answers[name], tokens, kv = _answer(opened, inputs, applied, workspace.settings.generate.max_new_tokens)
        table.add_row(name, escape(answers[name]), tokens, kv, f"{seconds[name] * 1000:.1f} ms")
    console.print(table)
    path = write_overlay(opened, sample, config, workspace.answered, sample.question)
    console.print(f"picture: {path}")
    return answers


def _sample(workspace: Workspace) -> Sample:
    asked, data = workspace.settings.generate, workspace.settings.data
    if asked.image is not None:
        picture = stored(Path(asked.image), "generate.image")
        picture.check()
        return _about([picture], asked.question or "What is in the picture?", "generate.image", data)
    [first] = workspace.samples("heldout", 1)
    return first if asked.question is None else _about(first.media, asked.question, first.where, data)


def _about(shown: Sequence[Medium], question: str, where: str, data: DataSettings) -> Sample:
    return as_asked(Sample((ask(question, shown, where),), where=where), data)


def _answer(
    opened: OpenedModel, inputs: BatchFeature, config: PruningConfig | None, max_new_tokens: int
) -> tuple[str, str, str]:
    """The answer, and tokens by layer and KV bytes as text."""
    with prune(opened.model, config) if config else nullcontext() as pruner:
        [answer] = greedy_answers(opened, inputs, max_new_tokens)
        if pruner is None or config is None:
            layouts = shown_layouts(opened.modules.geometry, inputs)
            return answer, str(sum(layout.visual_tokens for layout in layouts)), ""
        [report] = pruner.report
        steps = zip(config.schedule, report.kept, strict=True)
        tokens = " → ".join(f"{len(kept)} from layer {step.layer}" for step, kept in steps)
        kv = f"{report.kv_bytes:,} of {report.kv_bytes_unpruned:,}"
        return answer, f"{tokens} (retention {report.retention:.3f})", kv


@torch.inference_mode()
def _seconds_to_first_token(
    opened: OpenedModel, inputs: BatchFeature, configs: Mapping[str, PruningConfig | None]
) -> dict[str, float]:
    """Median seconds from pixels to the first token, interleaved."""
    model: Any = opened.model
    watch = Stopwatch(model.device)
    for _ in range(1 + REPEATS):
        for name, config in configs.items():
            with prune(model, config) if config else nullcontext():
                watch.time(name, lambda: model(**inputs, logits_to_keep=1).logits.argmax(-1))
    return watch.medians()
