"""Where a batch's images are and how important their visual tokens are."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import Family
from multimodal.layout import Layout
from multimodal.observation import VisionObservation


@dataclass(frozen=True)
class Prompt:
    """Where the images of a batch of prompts are, and how important their visual tokens are.

    Args:
        layouts: of each image, in the order of their placeholders.
        rows: batch row of each image.
        places: places of each image's visual tokens in the padded row, one ``[visual tokens]`` an image.
        maps: importance of each image's visual tokens, NaN at newline tokens; None if the method has no map.
    """

    layouts: Sequence[Layout]
    rows: Sequence[int]
    places: Sequence[Tensor]
    maps: Sequence[Tensor] | None


def importance_maps(
    family: Family, config: PruningConfig, layouts: Sequence[Layout], vision: VisionObservation
) -> list[Tensor] | None:
    """The method's importance of every visual token of every image, NaN at newline tokens; None if it has no map."""
    patches = config.method.patch_importance(vision)
    if patches is None:
        return None
    return [packed[:, 0] for packed in family.pack(patches.unsqueeze(-1), layouts)]


def locate_images(is_visual: Tensor, layouts: Sequence[Layout], maps: Sequence[Tensor] | None) -> Prompt:
    """Share out the placeholders of a batch among its images, in order.

    ``generate()`` may have copied each row several times since the images were encoded (beams, several sequences);
    the copies then share the images' maps.

    Args:
        is_visual: True at the placeholders of visual tokens ``[B, L]``.
        layouts: of the images, in order.
        maps: their importance maps.

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
    rows, places = is_visual[::copies].nonzero(as_tuple=True)
    owners = rows.split(sizes)
    if any(own[0] != own[-1] for own in owners):
        raise FlowpruneError(
            "An image's placeholders lie in two prompts: pass images in the order of their placeholders, and with this "
            "transformers copy (num_beams, num_return_sequences) only prompts of one image."
        )
    images = list(zip(range(len(layouts)), (int(own[0]) for own in owners), places.split(sizes), strict=True))
    expanded = [
        (image, row * copies + copy, at)
        for row in range(len(is_visual) // copies)
        for copy in range(copies)
        for image, own, at in images
        if own == row
    ]
    return Prompt(
        layouts=[layouts[image] for image, _, _ in expanded],
        rows=[row for _, row, _ in expanded],
        places=[at for _, _, at in expanded],
        maps=None if maps is None else [maps[image] for image, _, _ in expanded],
    )
