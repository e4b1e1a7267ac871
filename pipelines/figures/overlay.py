"""One picture of one sample: the image, what the maps say of it, and what every step keeps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from multimodal import PruningConfig, prune
from multimodal.evidence import (
    AttentionSinks,
    PatchEntropy,
    ReceivedAttention,
    Request,
    TowerScore,
    VisionRequest,
    joined,
    token_evidence,
)
from multimodal.layout import Layout
from multimodal.methods import VisualTokens
from multimodal.plan import kept_counts
from multimodal.recycling import cells_of
from multimodal.runtime.report import SampleReport
from multimodal.runtime.sinks import language_sinks
from pipelines.data import Sample
from pipelines.data.sample import Medium
from pipelines.data.videos import Video
from pipelines.figures.panels import draw_image, draw_kept, draw_map, grid_maps, place_on_grids, save_panels
from pipelines.model import OpenedModel
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
    """What :func:`write_overlay` draws: a row for each grid of each image, and each moment of a video.

    Args:
        opened: the model.
        sample: one image and question.
        config: how it is pruned.
        name: above the image.
    """
    inputs, geometry = build_inputs(opened, [sample]), opened.modules.geometry
    own = config.vision_requests
    shown: dict[str, VisionRequest] = {"entropy (bits)": PatchEntropy()}
    for layer in sorted({layer for request in own for layer in request.attention_layers}):
        shown[f"attention received, layer {layer:g}"] = ReceivedAttention(layer)
        shown[f"sinks of the tower, layer {layer:g}"] = AttentionSinks(layer)
    asked = [request for request in own if not isinstance(request, TowerScore)]  # which the tower answers as it is
    seen = observe_sample(opened.modules, inputs, joined([*shown.values(), *asked]), opened.normalization)
    with prune(opened.model, config) as pruner:
        opened.modules.base(**inputs, use_cache=False)
        report = pruner.report[0]
    answers = token_evidence(geometry, [*shown.values(), *asked], seen.layouts, seen.evidence)
    sinks = language_sinks(opened.modules, inputs)
    at_once = len(asked) == len(config.method.evidence)  # what it looks at is there before the language model
    panels: list[list[Callable[[Axes], None]]] = []
    for image, (layout, medium) in enumerate(zip(seen.layouts, sample.media, strict=True)):
        by_patch: dict[Request, Tensor] = {request: own[image][layout.patch_index] for request, own in answers.items()}
        maps = {title: grid_maps(by_patch[request], layout) for title, request in shown.items()}
        own_sinks = sinks[seen.visual_index(image)[layout.patch_index]]
        maps["sinks of the language model"] = grid_maps(own_sinks, layout)
        if config.method.scores and asked and at_once:
            tokens = _tokens(seen, image, config, by_patch)
            maps[f"importance, {config.method.name}"] = grid_maps(config.method.score(tokens)[0], layout)
        steps = _steps(config, seen, image, report)
        titled = name if image == 0 else f"{name} {image + 1}"
        panels += _rows(titled, _views(inputs, layout, medium), maps, steps)
    return panels


Step = tuple[str, list[np.ndarray], list[np.ndarray], list[np.ndarray] | None]


def _rows(
    name: str, views: Sequence[Image.Image], maps: Mapping[str, list[np.ndarray]], steps: Sequence[Step]
) -> list[list[Callable[[Axes], None]]]:
    panels = []
    for grid, view in enumerate(views):
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


def _views(inputs: Mapping[str, Tensor], layout: Layout, medium: Medium) -> list[Image.Image]:
    """What each grid looks at: a frame of the video, or the picture as the processor resized it for the base view, as
    it was for tiles."""
    if isinstance(medium, Video):
        return medium.stills(len(layout.grids))
    image, pixels = medium.shown(), inputs["pixel_values"]
    if pixels.ndim < 4:  # flattened patches of a picture that kept its proportions
        return [image] * len(layout.grids)
    height, width = pixels.shape[-2:]
    return [image.resize((width, height)), *[image] * (len(layout.grids) - 1)]


def _tokens(
    seen: CalibrationSample, image: int, config: PruningConfig, by_patch: Mapping[Request, Tensor]
) -> VisualTokens:
    """An image's prunable tokens before the language model, as a method sees them."""
    layout = seen.layouts[image]
    return VisualTokens(
        0,
        layout,
        torch.arange(layout.patch_tokens).unsqueeze(0),
        lambda: seen.embeds[seen.visual_index(image)][layout.patch_index].unsqueeze(0),
        lambda request: by_patch[config.seen_as(request)].unsqueeze(0),
    )


def _steps(config: PruningConfig, seen: CalibrationSample, image: int, report: SampleReport) -> list[Step]:
    """For each step: its name, the tokens left of an image, how many each stands for, and the recycling cells of the
    first."""
    layout = seen.layouts[image]
    patch_at = torch.full((len(seen.is_visual),), -1)
    patch_at[seen.visual_index(image)[layout.patch_index]] = torch.arange(layout.patch_tokens)
    count = kept_counts(layout, config.schedule)[0] - len(layout.newlines)
    merging = config.merging
    cell = getattr(config.method, "recycling_cell", None) if merging is None else getattr(merging, "cell", None)
    found = None if cell is None else cells_of(layout.grids, cell, count if config.exact else None)
    steps = []
    for step, left, stands_for in zip(config.schedule, report.kept, report.sizes, strict=True):
        index = patch_at[left]
        where = "before the language model" if step.layer == 0 else f"before layer {step.layer}"
        cells = grid_maps(found.ids, layout) if found is not None and step.layer == 0 else None
        sizes = torch.ones(layout.patch_tokens)
        sizes[index[index >= 0]] = stands_for[index >= 0]
        kept = place_on_grids(layout, index[index >= 0])
        own = int(torch.isin(left, seen.visual_index(image)).sum())
        steps.append((f"{own} tokens {where}", kept, grid_maps(sizes, layout), cells))
    return steps
