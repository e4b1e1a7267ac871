"""Watch a model look at images and videos: queries and keys of some vision layers, and the entropy of the patches.

``get_image_features`` and ``get_video_features`` are where every transformers version turns pixels into visual tokens
(some call them in the forward pass, some before it in ``generate()``), so that is where they are seen.
"""

import functools
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multimodal.families import Family
from multimodal.importance import grey_entropy
from multimodal.layout import Layout
from multimodal.observation import LayerAttention, VisionObservation, observed_attention, unnormalised

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation
Modality = Literal["image", "video"]
OnEncoded = Callable[[Modality, list[Layout], list[VisionObservation]], None]


class _Seen(threading.local):
    """What the encoding under way in this thread has shown."""

    def __init__(self) -> None:
        self.under_way = False
        self.pixels: Tensor
        self.attention: dict[int, list[LayerAttention]]  # by layer, in the order of the calls


@contextmanager
def watch_vision(
    family: Family, layers: Sequence[int], normalisation: Normalisation | None, on_encoded: OnEncoded
) -> Iterator[None]:
    """Watch a model inside the ``with`` block.

    Args:
        family: of the model.
        layers: vision layers whose queries and keys are noted; −1 feeds the projector.
        normalisation: mean and standard deviation of the image processor, to see entropy; None: not.
        on_encoded: called with the layouts of the images or videos and what the tower showed of their views, each time
            the model encodes some.
    """
    base, seen = family.base, _Seen()

    def see_attention(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        if seen.under_way:
            seen.attention[layer].append(LayerAttention(queries, keys, scaling))

    def see_pixels(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.pixels = args[0] if args else kwargs["pixel_values"]

    def watched(modality: Modality, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        @torch.compiler.disable
        @functools.wraps(encode)
        def watching(*args: Any, **kwargs: Any) -> Any:
            if seen.under_way:  # some models encode videos as images
                return encode(*args, **kwargs)
            seen.under_way, seen.attention = True, defaultdict(list)
            try:
                output = encode(*args, **kwargs)
            finally:
                seen.under_way = False
            inputs = signature.bind(*args, **kwargs).arguments
            inputs |= inputs.pop("kwargs", {})
            layouts = family.layouts(inputs) if modality == "image" else family.video_layouts(inputs)
            on_encoded(modality, layouts, _observations(family, layouts, seen.attention, seen.pixels, normalisation))
            return output

        return watching

    observers = {family.vision_layer(layer): functools.partial(see_attention, layer) for layer in layers}
    hook = family.vision_tower.register_forward_pre_hook(see_pixels, with_kwargs=True)
    encoders: dict[str, Modality] = {"get_image_features": "image", "get_video_features": "video"}
    encoders = {name: modality for name, modality in encoders.items() if hasattr(base, name)}
    for name, modality in encoders.items():
        setattr(base, name, watched(modality, getattr(base, name)))
    try:
        with observed_attention(family.vision_tower, observers):
            yield
    finally:
        for name in encoders:
            delattr(base, name)  # the class's own method shows again
        hook.remove()


def _observations(
    family: Family,
    layouts: Sequence[Layout],
    attention: Mapping[int, Sequence[LayerAttention]],
    pixels: Tensor,
    normalisation: Normalisation | None,
) -> list[VisionObservation]:
    """One observation a size of view."""
    sizes = [patches for layout in layouts for patches in layout.views]
    by_layer = {layer: _by_view(calls, sizes) for layer, calls in attention.items()}
    entropy = None
    if normalisation is not None:
        entropy = grey_entropy(unnormalised(family.patch_pixels(pixels, layouts), *normalisation)).split(sizes)
    members = defaultdict(list)
    for view, patches in enumerate(sizes):
        members[patches].append(view)
    observations = []
    for patches, views in members.items():
        layers = {layer: _of_views(seen, views) for layer, seen in by_layer.items()}
        tokens = max((seen.keys.shape[-2] for seen in layers.values()), default=patches)
        bits = None if entropy is None else torch.stack([entropy[view] for view in views])
        observations.append(VisionObservation(tuple(views), layers, bits, class_tokens=tokens - patches))
    return observations


def _by_view(calls: Sequence[LayerAttention], sizes: Sequence[int]) -> LayerAttention | list[LayerAttention]:
    """What a layer compared in each view; one stacked observation if it saw all views in one call.

    Towers call their attention with all views as a batch, with one view at a time, or (flash attention) with all of
    them in one packed sequence.
    """
    if len(calls) == 1 and len(calls[0].queries) == len(sizes):
        return calls[0]
    scaling = calls[0].scaling
    queries = [view for call in calls for view in call.queries]
    keys = [view for call in calls for view in call.keys]
    if len(queries) != len(sizes):
        queries, keys = (list(torch.cat(each, dim=-2).split(list(sizes), dim=-2)) for each in (queries, keys))
    return [LayerAttention(q, k, scaling) for q, k in zip(queries, keys, strict=True)]


def _of_views(seen: LayerAttention | list[LayerAttention], views: Sequence[int]) -> LayerAttention:
    if isinstance(seen, LayerAttention):
        return seen  # all views are of one size
    chosen = [seen[view] for view in views]
    return LayerAttention(
        torch.stack([each.queries for each in chosen]), torch.stack([each.keys for each in chosen]), chosen[0].scaling
    )
