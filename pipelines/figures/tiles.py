"""What contenders see of a few held-out pictures, as small pictures side by side."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from multimodal import PruningConfig, prune
from pipelines.comparison.bench import Bench
from pipelines.comparison.contenders import UNPRUNED, label
from pipelines.comparison.measurement import Measured
from pipelines.comparison.rows import Comparison
from pipelines.data import Sample
from pipelines.figures.panels import grid_maps
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs

SIDE = 224  # pixels of a tile's longer side
DARKEST = 0.82


@dataclass(frozen=True)
class Tile:
    """One picture under one contender.

    Args:
        name: of the contender.
        picture: JPEG, as a data URL.
        answer: what it said.
        right: what that is worth, in [0, 1]; None where no right answer is known.
    """

    name: str
    picture: str
    answer: str
    right: float | None


@dataclass(frozen=True)
class Strip:
    """One question under all contenders at one budget."""

    question: str
    budget: float
    tiles: Sequence[Tile]


def draw_tiles(bench: Bench, comparison: Comparison, unpruned: Measured, pruned: Sequence[Measured]) -> list[Strip]:
    """Draw each method's better variant at the least budget.

    Args:
        bench: model and samples.
        comparison: says which variant is better.
        unpruned: the model as it is.
        pruned: the contenders.
    """
    strips = []
    budget = min(comparison.budgets)
    ranked: dict[str, Measured] = {}
    for row in comparison.budgets[budget]:
        for each in pruned:
            who = each.identity
            if (who.method, who.variant, who.budget) == (row.method, row.variant, budget):
                ranked.setdefault(who.method, each)
    for number, sample in enumerate(bench.samples[: bench.workspace.settings.compare.pictures]):
        full = np.ones((1, 1))
        tiles = [Tile(UNPRUNED, picture(sample.image, full), unpruned.answers[number], unpruned.right[number])]
        for each in ranked.values():
            assert each.identity.config is not None
            seen = share_of_layers(bench.opened, sample, each.identity.config)
            name = label(each.identity.method, each.identity.variant)
            tiles.append(Tile(name, picture(sample.image, seen), each.answers[number], each.right[number]))
        strips.append(Strip(sample.question, budget, tiles))
    return strips


@torch.inference_mode()
def share_of_layers(opened: OpenedModel, sample: Sample, config: PruningConfig) -> NDArray[np.float64]:
    """For each patch of the first grid of what is shown first, the share of the language model's layers that see it
    ``[rows, columns]``."""
    inputs, geometry = build_inputs(opened, [sample]), opened.modules.geometry
    is_video = bool(sample.videos and sample.media[0] is sample.videos[0])
    layout = (geometry.video_layouts if is_video else geometry.layouts)(inputs)[0]
    placeholder = geometry.video_token_id if is_video else geometry.image_token_id
    with prune(opened.model, config) as pruner:
        opened.modules.base(**inputs, use_cache=False)
        kept = pruner.report[0].kept
    visual = (inputs["input_ids"][0].cpu() == placeholder).nonzero()[:, 0][: layout.visual_tokens]
    layers = opened.tuned_for.layers
    seen = torch.zeros(layout.visual_tokens)
    ends = [*(step.layer for step in config.schedule), layers]
    alive = torch.ones(layout.visual_tokens, dtype=torch.bool)
    for start, end, left in zip([0, *ends], ends, [None, *kept], strict=False):
        if left is not None:
            alive = torch.isin(visual, left.cpu())
        seen += alive * (end - start) / layers
    return grid_maps(seen[layout.patch_index], layout)[0].astype(float)


def picture(image: Image.Image, seen: NDArray[np.float64]) -> str:
    """A picture whose patches are as bright as the share of layers that see them, as a data URL."""
    scale = SIDE / max(image.size)
    small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    shade = Image.fromarray(np.uint8(255 * (1 - DARKEST * (1 - seen)))).resize(small.size, Image.Resampling.NEAREST)
    pixels = np.asarray(small, dtype=float) * (np.asarray(shade, dtype=float)[..., None] / 255)
    file = BytesIO()
    Image.fromarray(np.uint8(pixels)).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
