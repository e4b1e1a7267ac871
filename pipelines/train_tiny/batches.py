"""The scenes and questions of one training step, fixed by the step alone."""

from collections.abc import Sequence

from omegaconf import DictConfig

from pipelines.data.describing import DISTRACTOR_COUNTS, OBJECT_COUNTS
from pipelines.data.scenes import KINDS, Question, Scene, ask, describe, scene_rng

Counts = Sequence[tuple[int, int]]
FULL: Counts = (OBJECT_COUNTS, DISTRACTOR_COUNTS)


def scenes_at(step: int, options: DictConfig) -> list[Scene]:
    """The ``batch`` scenes of a step."""
    return [describe(scene_rng("train", index)) for index in _indices(step, options)]


def questions_at(
    step: int, options: DictConfig, kinds: Sequence[str] = KINDS, times: int = 1, counts: Counts = FULL
) -> tuple[list[Scene], list[list[Question]]]:
    """The ``batch`` scenes of a step with so many objects and distractors, ``times`` questions of every kind each."""
    scenes, questions = [], []
    for index in _indices(step, options):
        rng = scene_rng("train", index)
        scenes.append(describe(rng, *counts))
        questions.append([ask(scenes[-1], kind, rng) for kind in kinds for _ in range(times)])
    return scenes, questions


def _indices(step: int, options: DictConfig) -> range:
    first = options.first_scene + step * options.batch
    return range(first, first + options.batch)
