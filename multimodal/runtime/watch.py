"""Watch a model look at images and videos, and keep what a method asked for.

``get_image_features`` and ``get_video_features`` are where every transformers version turns pixels into visual tokens
(some call them in the forward pass, some before it in ``generate()``), so that is where they are seen. Queries, keys
and pixels are let go as soon as the evidence is made of them.
"""

import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multimodal.errors import FlowpruneError
from multimodal.evidence import LayerAttention, TowerViews, VisionEvidence, VisionRequest
from multimodal.families import Modules
from multimodal.layout import Layout
from multimodal.runtime.attention import observed_attention
from multimodal.runtime.hooks import Hook, MethodHook
from multimodal.runtime.tower import TowerPruning
from multimodal.runtime.windows import joined_windows

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation
Modality = Literal["image", "video"]
OnEncoded = Callable[[Modality, Any, list[Layout], list[VisionEvidence]], None]


@dataclass(frozen=True)
class Encoded:
    """What was encoded together.

    Args:
        layouts: of each image or video.
        evidence: answers by visual token, for each of them.
    """

    layouts: Sequence[Layout]
    evidence: Mapping[VisionRequest, Sequence[Tensor]] = field(default_factory=dict)


class _Seen(threading.local):
    """What the encoding under way in this thread has shown."""

    def __init__(self) -> None:
        self.under_way = False
        self.pixels: Tensor | None = None
        self.attention: dict[float, list[LayerAttention]] = {}  # by layer, in the order of the calls
        self.features: dict[float, list[Tensor]] = {}

    def begin(self) -> None:
        self.under_way, self.pixels = True, None
        self.attention, self.features = defaultdict(list), defaultdict(list)


@contextmanager
def watch_vision(
    modules: Modules,
    requests: Iterable[VisionRequest],
    normalization: Normalization | None,
    on_encoded: OnEncoded,
    tower: TowerPruning | None = None,
) -> Iterator[None]:
    """Watch a model inside the ``with`` block.

    Args:
        modules: of the model.
        requests: what is asked of the tower.
        normalization: mean and standard deviation of the image processor, for requests that read pixels.
        on_encoded: called with the modality, the model's output, the layouts of the images or videos and the evidence
            of their views, each time the model encodes some.
        tower: what prunes inside the tower.
    """
    geometry, seen, requests = modules.geometry, _Seen(), list(requests)

    def see_attention(
        names: Sequence[float], queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None
    ) -> None:
        if seen.under_way:
            for layer in names:
                seen.attention[layer].append(LayerAttention(queries, keys, values, scaling))

    def see_features(layer: float, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if seen.under_way:
            seen.features[layer].append(output[0] if isinstance(output, tuple) else output)

    def see_pixels(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if seen.under_way:
            seen.pixels = args[0] if args else kwargs["pixel_values"]

    def watching(modality: Modality, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if seen.under_way:  # some models encode videos as images
            return encode(*args, **kwargs)
        seen.begin()
        try:
            output = encode(*args, **kwargs)
            inputs = inspect.signature(encode).bind(*args, **kwargs).arguments
            inputs |= inputs.pop("kwargs", {})
            layouts = geometry.layouts(inputs) if modality == "image" else geometry.video_layouts(inputs)
            with torch.no_grad():
                scores = [] if tower is None else tower.scores()
                views = _views(modules, layouts, seen, requests, normalization, scores)
                evidence = [VisionEvidence.of(each, requests) for each in views]
        finally:
            seen.__init__()  # type: ignore[misc]
        on_encoded(modality, output, layouts, evidence)
        return output

    named: dict[nn.Module, list[float]] = defaultdict(list)  # a layer may go by several names
    for layer in sorted({layer for request in requests for layer in request.attention_layers}):
        named[modules.vision_layer(layer)].append(layer)
    observers = {module: partial(see_attention, names) for module, names in named.items()}
    encoders: dict[str, Modality] = {"get_image_features": "image", "get_video_features": "video"}
    with ExitStack() as stack:
        for layer in {layer for request in requests for layer in request.feature_layers}:
            hook = Hook(partial(see_features, layer))
            stack.callback(modules.vision_layer(layer).register_forward_hook(hook).remove)
        stack.callback(modules.vision_tower.register_forward_pre_hook(Hook(see_pixels), with_kwargs=True).remove)
        for name, modality in encoders.items():
            if hasattr(modules.base, name):
                stack.callback(MethodHook(modules.base, name, partial(watching, modality)).remove)
        stack.enter_context(joined_windows(modules.vision_tower))
        stack.enter_context(observed_attention(observers))
        yield


def _views(
    modules: Modules,
    layouts: Sequence[Layout],
    seen: _Seen,
    requests: Sequence[VisionRequest],
    normalization: Normalization | None,
    scores: Sequence[Tensor],
) -> list[TowerViews]:
    """What was seen, views of one size together."""
    sizes = [patches for layout in layouts for patches in layout.views]
    attention = {layer: _by_view(calls, sizes) for layer, calls in seen.attention.items()}
    features = {layer: _split(calls, sizes) for layer, calls in seen.features.items()}
    by_rule = _split(scores, sizes) if scores else None
    pixels: Sequence[Tensor] | None = None
    if normalization is not None and any(request.reads_pixels for request in requests):
        assert seen.pixels is not None
        patches = modules.geometry.patch_pixels(seen.pixels, layouts)
        pixels = unnormalized(patches, *normalization).split(sizes)
    wanted = {layer for request in requests for layer in (*request.attention_layers, *request.feature_layers)}
    if missing := wanted - attention.keys() - features.keys():
        raise FlowpruneError(
            f"The vision tower's layer {min(missing)} ran an attention that was not there when the block was opened: "
            "choose the attention implementation before prune()."
        )
    members = defaultdict(list)
    for view, size in enumerate(sizes):
        members[size].append(view)
    groups = []
    for size, views in members.items():
        own = {layer: _attention_of(calls, views) for layer, calls in attention.items()}
        shown = {layer: torch.stack([calls[view] for view in views]) for layer, calls in features.items()}
        tokens = next((each.keys.shape[-2] for each in own.values()), None)
        tokens = next((each.shape[1] for each in shown.values()), size) if tokens is None else tokens
        levels = None if pixels is None else torch.stack([pixels[view] for view in views])
        score = None if by_rule is None else torch.stack([by_rule[view] for view in views]).squeeze(-1)
        tokens = tokens if score is None else score.shape[1]
        groups.append(TowerViews(tuple(views), own, shown, levels, score, class_tokens=tokens - size))
    return groups


def _by_view(calls: Sequence[LayerAttention], sizes: Sequence[int]) -> LayerAttention | list[LayerAttention]:
    """What a layer compared in each view; one stacked observation if it saw all views, of one size, in one call.

    Towers call their attention with all views as a batch, with one view at a time, or (flash attention) with all of
    them in one packed sequence.
    """
    if len(calls) == 1 and len(calls[0].queries) == len(sizes):
        return calls[0]
    parts = [_split([getattr(call, name) for call in calls], sizes) for name in ("queries", "keys", "values")]
    return [LayerAttention(q, k, v, calls[0].scaling) for q, k, v in zip(*parts, strict=True)]


def _split(calls: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Tensors ``[views, …, tokens, C]`` of each call as one ``[…, tokens, C]`` a view."""
    views = [view for call in calls for view in (call if call.ndim > 2 else call.unsqueeze(0))]
    return views if len(views) == len(sizes) else list(torch.cat(views, dim=-2).split(list(sizes), dim=-2))


def _attention_of(seen: LayerAttention | list[LayerAttention], views: Sequence[int]) -> LayerAttention:
    if isinstance(seen, LayerAttention):
        return seen  # all views are of one size
    chosen = [seen[view] for view in views]
    queries, keys, values = (
        torch.stack([getattr(each, name) for each in chosen]) for name in ("queries", "keys", "values")
    )
    return LayerAttention(queries, keys, values, chosen[0].scaling)


def unnormalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """8-bit levels, as float32 ``[..., pixels, 3]``, of normalized pixels ``[..., 3, pixels]`` of range 0–1 before."""
    levels = torch.tensor([mean, std], dtype=torch.float32, device=pixels.device).mul(255).unsqueeze(-1)
    return torch.addcmul(levels[0], pixels.float(), levels[1]).round().clamp(0, 255).transpose(-1, -2)
