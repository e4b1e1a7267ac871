"""One picture of one sample: the image, what the maps say of it, and what every step keeps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from multimodal import PruningConfig, prune
from multimodal.costs import kept_counts
from multimodal.layout import Layout
from multimodal.methods import VisualTokens
from multimodal.observation import VisionObservation
from multimodal.prompt import importance_maps
from multimodal.recycling import cell_ids
from pipelines.data import Sample
from pipelines.opened import OpenedModel
from pipelines.pictures import draw_image, draw_kept, draw_map, grid_maps, place_on_grids, save_panels
from pipelines.prompts import build_inputs
from search.calibration import CalibrationSample, observe_sample


def write_overlay(opened: OpenedModel, sample: Sample, config: PruningConfig, path: Path, title: str) -> Path:
    """Draw a sample under a config; returns the path of the PNG.

    Args:
        opened: the model.
        sample: one image and question.
        config: how it is pruned.
        path: of the PNG.
        title: above the picture.
    """
    save_panels(path, title, overlay_panels(opened, sample, config))
    return path


@torch.inference_mode()
def overlay_panels(
    opened: OpenedModel, sample: Sample, config: PruningConfig, name: str = "image"
) -> list[list[Callable[[Axes], None]]]:
    """What :func:`write_overlay` draws: a row for each of the image's grids.

    Args:
        opened: the model.
        sample: one image and question.
        config: how it is pruned.
        name: above the image.
    """
    inputs = build_inputs(opened, [sample])
    seen = observe_sample(opened.family, inputs, config.method.vision_layers, opened.pixels)
    with prune(opened.model, config) as pruner:
        opened.family.base(**inputs, use_cache=False)
        kept = pruner.report[0].kept
    layout = seen.layouts[0]
    importance = importance_maps(opened.family, config, seen.layouts, seen.vision)
    own = None if importance is None else importance[0]
    maps = _maps(opened, config, seen, layout, own)
    steps = _steps(config, seen, layout, kept, _recycled_sizes(config, seen, layout, own))
    panels: list[list[Callable[[Axes], None]]] = []
    for grid, view in enumerate(_views(inputs["pixel_values"], layout, sample.image)):
        row: list[Callable[[Axes], None]] = [
            partial(draw_image, image=view, title=name if grid == 0 else f"grid {grid}")
        ]
        row += [partial(draw_map, image=view, values=values[grid], title=what) for what, values in maps.items()]
        row += [
            partial(
                draw_kept,
                image=view,
                kept=left[grid],
                sizes=sizes[grid],
                cells=cells[grid] if cells else None,
                title=step,
            )
            for step, left, sizes, cells in steps
        ]
        panels.append(row)
    return panels


def _views(pixels: Tensor, layout: Layout, image: Image.Image) -> list[Image.Image]:
    """What each grid looks at: the picture as the processor resized it for the base view, as it was for tiles."""
    if pixels.ndim < 4:  # flattened patches of a picture that kept its proportions
        return [image] * len(layout.grids)
    height, width = pixels.shape[-2:]
    return [image.resize((width, height)), *[image] * (len(layout.grids) - 1)]


def _maps(
    opened: OpenedModel, config: PruningConfig, seen: CalibrationSample, layout: Layout, importance: Tensor | None
) -> dict[str, list[np.ndarray]]:
    patches = layout.patch_places
    views = range(len(layout.views))

    def packed(of: Callable[[VisionObservation], Tensor]) -> list[np.ndarray]:
        by_view = {view: own for each in seen.vision for view, own in zip(each.views, of(each), strict=True)}
        [tokens] = opened.family.pack([by_view[view].unsqueeze(-1) for view in views], [layout])
        return grid_maps(tokens[patches, 0], layout)

    maps = {"entropy (bits)": packed(_entropy)}
    for layer in seen.vision[0].layers:
        maps[f"attention received, layer {layer}"] = packed(partial(_received, layer))
    if importance is not None:
        maps[f"importance, {config.method.name}"] = grid_maps(importance[patches], layout)
    return maps


def _received(layer: int, seen: VisionObservation) -> Tensor:
    return seen.layers[layer].received()[:, seen.class_tokens :]


def _entropy(seen: VisionObservation) -> Tensor:
    assert seen.entropy is not None
    return seen.entropy


def _steps(
    config: PruningConfig, seen: CalibrationSample, layout: Layout, kept: tuple[Tensor, ...], sizes: Tensor
) -> list[tuple[str, list[np.ndarray], list[np.ndarray], list[np.ndarray] | None]]:
    """For each step: its name, the tokens left, how many each stands for, and the recycling cells of the first."""
    places = seen.places(0)
    patch_at = torch.full((len(seen.is_visual),), -1)
    patch_at[places[layout.patch_places]] = torch.arange(layout.patch_tokens)
    cell = getattr(config.method, "recycling_cell", None)
    steps = []
    for step, left in zip(config.schedule, kept, strict=True):
        index = patch_at[left]
        where = "before the language model" if step.layer == 0 else f"before layer {step.layer}"
        cells = grid_maps(cell_ids(layout.cells, cell), layout) if cell is not None and step.layer == 0 else None
        steps.append(
            (
                f"{len(left)} tokens {where}",
                place_on_grids(layout, index[index >= 0]),
                grid_maps(sizes, layout),
                cells,
            )
        )
    return steps


def _recycled_sizes(
    config: PruningConfig, seen: CalibrationSample, layout: Layout, importance: Tensor | None
) -> Tensor:
    """How many tokens each patch token stands for after the step before the language model ``[patch tokens]``."""
    sizes = torch.ones(layout.patch_tokens)
    if config.schedule[0].layer > 0:
        return sizes
    patches = layout.patch_places
    tokens = VisualTokens(
        layer=0,
        layout=layout,
        index=torch.arange(layout.patch_tokens).unsqueeze(0),
        features=seen.embeds[seen.places(0)][patches].unsqueeze(0),
        importance=None if importance is None else importance[patches].unsqueeze(0),
    )
    count = kept_counts(layout, config.schedule)[0] - len(layout.newlines)
    reduced = config.method.reduce(tokens, count)
    if reduced.sizes is not None:
        sizes[reduced.kept[0]] = reduced.sizes[0]
    return sizes
