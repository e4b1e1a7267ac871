"""What a model answers to samples, and what that is worth."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby

from multimodal import PruningConfig, prune
from multimodal.runtime.report import SampleReport
from pipelines.console import progress_bar
from pipelines.data import Sample
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, greedy_answers
from pipelines.scores import score

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
        for batch in _batches(samples):
            longest = max((len(answer.split()) for sample in batch for answer in sample.answers), default=0)
            found += greedy_answers(opened, build_inputs(opened, batch), max(16, 2 * longest))
            reports += pruner.report if pruner else []
            progress.advance(task, len(batch))
    return found, reports


def _batches(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """In their order; processors take no batch in which only some have pictures, or videos."""
    for _, alike in groupby(samples, lambda sample: (bool(sample.pictures), bool(sample.videos))):
        group = list(alike)
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def grade(answer: str, sample: Sample, rule: str) -> float | None:
    """What an answer is worth, in [0, 1]; None where no right one is known.

    Args:
        answer: the model's.
        sample: has the right ones.
        rule: how it is graded, as in ``data.score``.
    """
    return score(answer, sample.answers, rule) if sample.answers else None
