"""What a model answers to samples, and whether that is right."""

from collections.abc import Sequence
from contextlib import nullcontext

from multimodal import PruningConfig, prune
from multimodal.runtime.report import SampleReport
from pipelines.console import progress_bar
from pipelines.data import Sample
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, greedy_answers

BATCH = 32


def answer_all(
    opened: OpenedModel, samples: Sequence[Sample], config: PruningConfig | None, name: str
) -> tuple[list[str], list[SampleReport]]:
    """What the model answers to each sample, greedily, and what pruning did to each; nothing where there is none.

    Args:
        opened: the model.
        samples: images and questions.
        config: how it is pruned; None: not at all.
        name: of the config, for the progress bar.
    """
    found: list[str] = []
    reports: list[SampleReport] = []
    with progress_bar() as progress, prune(opened.model, config) if config else nullcontext() as pruner:
        task = progress.add_task(f"answering {name}", total=len(samples))
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            longest = max(len((sample.answer or "").split()) for sample in batch)
            found += greedy_answers(opened, build_inputs(opened, batch), max(16, 2 * longest))
            reports += pruner.report if pruner else []
            progress.advance(task, len(batch))
    return found, reports


def is_right(answer: str, sample: Sample) -> bool:
    """Whether an answer is the sample's own, but for case, spaces and full stops."""
    return sample.answer is not None and _plain(answer) == _plain(sample.answer)


def _plain(answer: str) -> str:
    return " ".join(answer.lower().strip(" .").split())
