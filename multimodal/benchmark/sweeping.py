"""The measurements behind a sweep over image size, batch and retention."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from multimodal.benchmark.inputs import random_inputs
from multimodal.benchmark.models import in_words
from multimodal.benchmark.sweep import Cell, Sweep
from multimodal.benchmark.timing import Effort, time_variants
from multimodal.benchmark.variants import PRUNED, RECORDED, UNPRUNED, variants
from multimodal.config import PruningConfig
from multimodal.families import Modules


@dataclass(frozen=True)
class Axes:
    """What a sweep varies.

    Args:
        sizes: (height, width) of images in pixels.
        batches: prompts that are read together.
        retentions: of the pruned variants.
        text_tokens: of a prompt; this is not varied.
    """

    sizes: Sequence[tuple[int, int]]
    batches: Sequence[int]
    retentions: Sequence[float]
    text_tokens: int


def measure_sweep(
    name: str,
    modules: Modules,
    axes: Axes,
    config_at: Callable[[float], PruningConfig],
    effort: Effort,
) -> Sweep:
    """Time the first token over image size, batch and retention, on random images.

    Args:
        name: of the model.
        modules: of it.
        axes: what is varied.
        config_at: the config of a retention.
        effort: how thoroughly.
    """
    cells = []
    for size, tokens in _sizes(modules, axes.sizes).items():
        for batch in axes.batches:
            prompts = [random_inputs(modules, size, batch, axes.text_tokens)]
            for retention in axes.retentions:
                names = () if effort.over else (UNPRUNED, PRUNED, RECORDED)
                ways = variants(modules.model, config_at(retention), names)
                timed = time_variants(modules.model, prompts, ways, replace(effort, new_tokens=0))
                eager = [way.name for way in ways if way.recordings is not None and not len(way.recordings)]
                own = {name: each.first for name, each in timed.items() if not each.failed and name not in eager}
                unpruned = own.pop(UNPRUNED, None)
                cells.append(
                    Cell(
                        image=in_words(size),
                        visual_tokens=tokens,
                        batch=batch,
                        retention=retention,
                        unpruned=unpruned,
                        seconds=own,
                    )
                )
    return Sweep(model=name, cells=cells)


def _sizes(modules: Modules, sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int] | None, int]:
    """Visual tokens of each image size; one, and no size, where the tower takes all alike."""
    geometry = modules.geometry
    tokens: dict[tuple[int, int] | None, int] = {
        size: sum(layout.visual_tokens for layout in geometry.layouts(geometry.random_image(size))) for size in sizes
    }
    return {None: tokens[sizes[0]]} if len(sizes) > 1 and len(set(tokens.values())) == 1 else tokens
