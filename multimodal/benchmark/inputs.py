"""What a model is given to be timed: random images and words, and what of a prompt is visual."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningStep
from multimodal.families import Geometry, Modules
from multimodal.layout import Layout
from multimodal.plan import Plan
from multimodal.runtime.calls import PIXELS
from multimodal.runtime.prompt import locate
from multimodal.runtime.watch import Encoded, Modality

Inputs = Mapping[str, Tensor]


def random_inputs(modules: Modules, size: tuple[int, int] | None, batch: int, text_tokens: int) -> Inputs:
    """A batch of prompts of one random image each, with words around it.

    Args:
        modules: of the model.
        size: (height, width) of the image in pixels; None: what the tower takes.
        batch: how many.
        text_tokens: of each, half of them before the image.
    """
    geometry, model = modules.geometry, modules.model
    pixels = geometry.random_image(size)
    visual = sum(layout.visual_tokens for layout in geometry.layouts(pixels))
    before = text_tokens // 2
    special = (value for name, value in vars(model.config).items() if name.endswith(("_token_id", "_token_index")))
    words = min([geometry.text_config.vocab_size, *(each for each in special if isinstance(each, int) and each > 1)])
    ids = torch.randint(1, words, (batch, text_tokens + visual), device="cpu")
    ids[:, before : before + visual] = geometry.image_token_id
    pixels = {name: value.repeat(batch, *[1] * (value.ndim - 1)) for name, value in pixels.items()}
    inputs = pixels | geometry.token_inputs(ids) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def layouts_by_kind(geometry: Geometry, inputs: Mapping[str, Any]) -> dict[Modality, list[Layout]]:
    """The layouts of all pictures and of all videos of a processor's output."""
    read: dict[Modality, Callable[[Mapping[str, Any]], list[Layout]]] = {
        "image": geometry.layouts,
        "video": geometry.video_layouts,
    }
    return {modality: read[modality](inputs) for modality, pixels in PIXELS.items() if pixels in inputs}


def planned(modules: Modules, inputs: Inputs, schedule: Sequence[PruningStep]) -> Plan:
    """The plan of a batch under a schedule, as the pruner makes it."""
    ids, mask = inputs["input_ids"].cpu().numpy(), inputs["attention_mask"].cpu().numpy()
    shown = {modality: Encoded(layouts) for modality, layouts in layouts_by_kind(modules.geometry, inputs).items()}
    return locate(modules.geometry, ids, mask != 0, shown).plan(schedule, modules.geometry.text_layers)


def encode(modules: Modules, inputs: Inputs) -> None:
    """Send a prompt's images, then its videos, through tower and projector, as the model does."""
    for modality, pixels in PIXELS.items():
        if pixels in inputs:
            function = getattr(modules.base, f"get_{modality}_features")
            known = inspect.signature(function).parameters
            own = {name: value for name, value in inputs.items() if name in known and name not in PIXELS.values()}
            own[pixels if pixels in known else PIXELS["image"]] = inputs[pixels]
            function(**own)
