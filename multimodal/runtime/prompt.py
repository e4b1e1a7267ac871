"""Where a batch's images and videos are: read from token ids once, then plain arithmetic on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multimodal.adaptive import Adaptive, varieties
from multimodal.errors import FlowpruneError
from multimodal.evidence import VisionRequest
from multimodal.families import Geometry
from multimodal.layout import Layout
from multimodal.plan import Plan, make_plan
from multimodal.runtime.watch import Encoded, Modality


@dataclass(frozen=True)
class Image:
    """One image or video of a prompt.

    Args:
        layout: of its visual tokens.
        row: of the batch.
        index: of its visual tokens in the padded row, increasing ``[visual tokens]``.
        sources: which of what was encoded together it is made of; several where tiles were encoded one by one.
    """

    layout: Layout
    row: int
    index: NDArray[np.int64]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts: what of it is text, what visual, what padding. On the host.

    Args:
        valid: False at padding ``[B, L]``.
        images: its images and videos, row by row.
        evidence: answers by visual token, for each of what was encoded together.
        blocks: tokens of one block attend to each other both ways ``[B, L]``, −1: none; None: no token does.
    """

    valid: NDArray[np.bool_]
    images: Sequence[Image]
    evidence: Mapping[VisionRequest, Sequence[Tensor]] = field(default_factory=dict)
    blocks: Tensor | None = None

    @property
    def is_visual(self) -> NDArray[np.bool_]:
        """True at visual tokens ``[B, L]``."""
        is_visual = np.zeros(self.valid.shape, dtype=bool)
        for image in self.images:
            is_visual[image.row, image.index] = True
        return is_visual

    def spread(self, features: Tensor) -> Tensor:
        """Features of visual tokens as ones of all tokens, 0 elsewhere ``[visual tokens, C]`` → ``[B, L, C]``."""
        flat = torch.from_numpy(np.flatnonzero(self.is_visual)).to(features.device)
        spread = features.new_zeros(self.valid.size, features.shape[-1])
        return spread.index_copy(0, flat, features).unflatten(0, self.valid.shape)

    def weighted(self, adaptive: Adaptive, embeds: Tensor) -> "Prompt":
        """The same, its images' layouts with what each may keep.

        Args:
            adaptive: how keep ratios follow the image.
            embeds: input embeddings ``[B, L, C]``.
        """
        tokens = [embeds[image.row, torch.from_numpy(image.index[image.layout.patch_index])] for image in self.images]
        layouts = adaptive.weighted([image.layout for image in self.images], varieties(tokens))
        images = [replace(image, layout=layout) for image, layout in zip(self.images, layouts, strict=True)]
        return replace(self, images=images)

    def plan(self, schedule: Sequence, layers: int) -> Plan:
        """The prompts under a schedule."""
        prompts = []
        for row, valid in enumerate(self.valid):
            layouts = [image.layout for image in self.images if image.row == row]
            prompts.append((layouts, int(valid.sum()) - sum(layout.visual_tokens for layout in layouts)))
        return make_plan(prompts, schedule, layers)


def locate(
    geometry: Geometry,
    token_ids: NDArray[np.int64],
    valid: NDArray[np.bool_],
    encoded: Mapping[Modality, Encoded],
    blocks: Tensor | None = None,
) -> Prompt:
    """Find the placeholders of everything that was encoded.

    Args:
        geometry: of the model.
        token_ids: of the prompts ``[B, L]``.
        valid: False at padding ``[B, L]``.
        encoded: what was, by modality.
        blocks: as in :class:`Prompt`.

    Raises:
        FlowpruneError: the placeholders do not match, or some of an image's are hidden.
    """
    tokens = {"image": geometry.image_token_id, "video": geometry.video_token_id}
    images: list[Image] = []
    evidence: dict[VisionRequest, list[Tensor]] = {}
    first = 0
    for modality, seen in encoded.items():
        images += locate_images(token_ids == tokens[modality], seen.layouts, geometry.joins_touching_views, first)
        first += len(seen.layouts)
        for request, answers in seen.evidence.items():
            evidence.setdefault(request, []).extend(answers)
    for image in images:
        if hidden := int((~valid[image.row, image.index]).sum()):
            raise FlowpruneError(
                f"attention_mask hides {hidden} of an image's {image.layout.visual_tokens} visual tokens in row "
                f"{image.row}: leave the image out of the prompt, or show all of it."
            )
    return Prompt(valid, images, evidence, blocks)


def locate_images(
    is_visual: NDArray[np.bool_], layouts: Sequence[Layout], join: bool = False, first: int = 0
) -> list[Image]:
    """Share out the placeholders of a batch among its images (or its videos), in order.

    ``generate()`` may have copied each row several times since the images were encoded (beams, several sequences);
    the copies then share what was encoded.

    Args:
        is_visual: True at the placeholders of visual tokens ``[B, L]``.
        layouts: of the images, in order.
        join: whether images whose visual tokens touch are tiles of one image.
        first: number of the first of these images among all that was encoded.

    Raises:
        FlowpruneError: the placeholders do not match the images.
    """
    sizes = [layout.visual_tokens for layout in layouts]
    placeholders, rows = int(is_visual.sum()), len(is_visual)
    copies, rest = divmod(placeholders, sum(sizes)) if sizes else (0, placeholders)
    if rest or not copies or rows % copies:
        raise FlowpruneError(
            f"The prompt has {placeholders} image placeholders, but its {len(layouts)} images make {sum(sizes)} visual "
            "tokens: build the inputs with the model's own processor, encode them inside the block, and leave "
            "prefill_chunk_size unset."
        )
    row, at = is_visual[::copies].nonzero()
    ends = np.cumsum(sizes)[:-1]
    owners, index = np.split(row, ends), np.split(at, ends)
    if any(own[0] != own[-1] for own in owners):
        raise FlowpruneError(
            "An image's placeholders lie in two prompts: pass images in the order of their placeholders, and with this "
            "transformers copy (num_beams, num_return_sequences) only prompts of one image."
        )
    owner = [int(own[0]) for own in owners]
    images = [[image] for image in range(len(layouts))]
    if join:
        touching = [a == b and p[-1] + 1 == q[0] for (a, p), (b, q) in pairwise(zip(owner, index, strict=True))]
        starts = [0, *(image for image, touches in enumerate(touching, 1) if not touches), len(layouts)]
        images = [list(range(*between)) for between in pairwise(starts)]
    return [
        Image(
            joined_layout(tuple(layouts[view] for view in image)),
            prompt * copies + copy,
            np.concatenate([index[view] for view in image]),
            tuple(first + view for view in image),
        )
        for prompt in range(rows // copies)
        for copy in range(copies)
        for image in images
        if owner[image[0]] == prompt
    ]


@lru_cache(maxsize=256)
def joined_layout(layouts: tuple[Layout, ...]) -> Layout:
    """The layout of one image whose tiles have these; itself if it is one."""
    if len(layouts) == 1:
        return layouts[0]
    newlines, before = [], 0
    for layout in layouts:
        newlines += [before + token for token in layout.newlines]
        before += layout.visual_tokens
    return Layout(
        grids=tuple(grid for layout in layouts for grid in layout.grids),
        newlines=tuple(newlines),
        views=tuple(patches for layout in layouts for patches in layout.views),
        video=layouts[0].video,
    )
