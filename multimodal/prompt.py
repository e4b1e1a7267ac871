"""Where a batch's images and videos are and how important their visual tokens are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import Family
from multimodal.layout import Layout
from multimodal.observation import VisionObservation
from multimodal.vision import Modality

Encoded = tuple[Sequence[Layout], Sequence[Tensor] | None]  # layouts of what was encoded together, importance maps


@dataclass(frozen=True)
class Prompt:
    """Where the images and videos of a batch of prompts are, and how important their visual tokens are.

    Args:
        layouts: of each image or video.
        rows: batch row of each.
        places: places of its visual tokens in the padded row, sorted, one ``[visual tokens]`` each.
        maps: importance of its visual tokens, NaN at newline tokens; None if the method has no map.
        blocks: tokens of one block attend to each other both ways ``[B, L]``, −1: none; None: no token does.
    """

    layouts: Sequence[Layout]
    rows: Sequence[int]
    places: Sequence[Tensor]
    maps: Sequence[Tensor] | None
    blocks: Tensor | None = None


def importance_maps(
    family: Family, config: PruningConfig, layouts: Sequence[Layout], vision: Sequence[VisionObservation]
) -> list[Tensor] | None:
    """The method's importance of every visual token of every image or video, NaN at newlines; None if it has no map."""
    views: dict[int, Tensor] = {}
    for seen in vision:
        patches = config.method.patch_importance(seen)
        if patches is None:
            return None
        views |= zip(seen.views, patches.unsqueeze(-1), strict=True)
    maps, first = [], 0
    for _, alike in groupby(layouts, key=lambda layout: layout.video):
        group = list(alike)
        last = first + sum(len(layout.views) for layout in group)
        maps += [packed[:, 0] for packed in family.pack([views[view] for view in range(first, last)], group)]
        first = last
    return maps


def locate(family: Family, input_ids: Tensor, encoded: Mapping[Modality, Encoded], blocks: Tensor | None) -> Prompt:
    """Find the placeholders of everything that was encoded.

    Args:
        family: of the model.
        input_ids: of the prompts ``[B, L]``.
        encoded: what was, by modality.
        blocks: as in :class:`Prompt`.

    Raises:
        FlowpruneError: the placeholders do not match.
    """
    tokens: dict[str, Any] = {"image": family.image_token_id, "video": family.video_token_id}
    found = [
        locate_images(input_ids == tokens[modality], *images, family.joins_touching_views)
        for modality, images in encoded.items()
    ]
    maps = [image for prompt in found for image in prompt.maps or ()]
    return Prompt(
        layouts=[layout for prompt in found for layout in prompt.layouts],
        rows=[row for prompt in found for row in prompt.rows],
        places=[places for prompt in found for places in prompt.places],
        maps=maps or None,
        blocks=blocks,
    )


def locate_images(
    is_visual: Tensor, layouts: Sequence[Layout], maps: Sequence[Tensor] | None, join: bool = False
) -> Prompt:
    """Share out the placeholders of a batch among its images (or its videos), in order.

    ``generate()`` may have copied each row several times since the images were encoded (beams, several sequences);
    the copies then share the images' maps.

    Args:
        is_visual: True at the placeholders of visual tokens ``[B, L]``.
        layouts: of the images, in order.
        maps: their importance maps.
        join: whether images whose visual tokens touch are tiles of one image.

    Raises:
        FlowpruneError: the placeholders do not match the images.
    """
    is_visual = is_visual.cpu()
    sizes = [layout.visual_tokens for layout in layouts]
    placeholders = int(is_visual.sum())
    copies, rest = divmod(placeholders, sum(sizes)) if sizes else (0, placeholders)
    if rest or not copies or len(is_visual) % copies:
        raise FlowpruneError(
            f"The prompt has {placeholders} image placeholders, but its {len(layouts)} images make "
            f"{sum(sizes)} visual tokens: build the inputs with the model's own processor."
        )
    rows, at = is_visual[::copies].nonzero(as_tuple=True)
    owners = rows.split(sizes)
    if any(own[0] != own[-1] for own in owners):
        raise FlowpruneError(
            "An image's placeholders lie in two prompts: pass images in the order of their placeholders, and with this "
            "transformers copy (num_beams, num_return_sequences) only prompts of one image."
        )
    owner = [int(own[0]) for own in owners]
    places = at.split(sizes)
    images = [[image] for image in range(len(layouts))]
    if join:
        touching = [a == b and p[-1] + 1 == q[0] for (a, p), (b, q) in pairwise(zip(owner, places, strict=True))]
        starts = [0, *(image for image, touches in enumerate(touching, 1) if not touches), len(layouts)]
        images = [list(range(*ends)) for ends in pairwise(starts)]
    expanded = [
        (image, row * copies + copy)
        for row in range(len(is_visual) // copies)
        for copy in range(copies)
        for image in images
        if owner[image[0]] == row
    ]
    return Prompt(
        layouts=[joined(tuple(layouts[view] for view in image)) for image, _ in expanded],
        rows=[row for _, row in expanded],
        places=[torch.cat([places[view] for view in image]) for image, _ in expanded],
        maps=None if maps is None else [torch.cat([maps[view] for view in image]) for image, _ in expanded],
    )


@lru_cache(maxsize=256)
def joined(layouts: tuple[Layout, ...]) -> Layout:
    """The layout of one image whose tiles have these; itself if it is one."""
    if len(layouts) == 1:
        return layouts[0]
    newlines, before = [], 0
    for layout in layouts:
        newlines += [before + place for place in layout.newlines]
        before += layout.visual_tokens
    return Layout(
        grids=tuple(grid for layout in layouts for grid in layout.grids),
        newlines=tuple(newlines),
        views=tuple(patches for layout in layouts for patches in layout.views),
        video=layouts[0].video,
    )
