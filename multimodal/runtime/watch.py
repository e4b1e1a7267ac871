"""Watch a model look at images and videos, and keep what a method asked for.

``get_image_features`` and ``get_video_features`` are where every transformers version turns pixels into visual tokens
(some call them in the forward pass, some before it in ``generate()``), so that is where they are seen. Queries, keys
and pixels are let go as soon as the evidence is made of them.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multimodal.evidence import LayerAttention, VisionEvidence, VisionRequest
from multimodal.families import Modules
from multimodal.layout import Layout
from multimodal.recording.recordings import Recordings
from multimodal.runtime.attention import observed_attention
from multimodal.runtime.grids import given_of_grids
from multimodal.runtime.hooks import Hook, MethodHook
from multimodal.runtime.seen import Seen, tower_views
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


@contextmanager
def watch_vision(
    modules: Modules,
    requests: Iterable[VisionRequest],
    normalization: Normalization | None,
    on_encoded: OnEncoded,
    tower: TowerPruning | None = None,
    recordings: Recordings | None = None,
) -> Iterator[None]:
    """Watch a model inside the ``with`` block.

    Args:
        modules: of the model.
        requests: what is asked of the tower.
        normalization: mean and standard deviation of the image processor, for requests that read pixels.
        on_encoded: called with the modality, the model's output, the layouts of the images or videos and the evidence
            of their views, each time the model encodes some.
        tower: what prunes inside the tower.
        recordings: where the tower and what it shows are recorded; None: they are not.
    """
    geometry, seen, requests = modules.geometry, Seen(), list(requests)

    def see_attention(
        names: Sequence[float], queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None
    ) -> None:
        if seen.under_way:
            for layer in names:
                seen.attention[layer].append(LayerAttention(queries, keys, values, scaling))

    def see_features(layer: float, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if seen.under_way:
            seen.features[layer].append(output[0] if isinstance(output, tuple) else output)

    def given(kwargs: dict[str, Any]) -> dict[str, Any]:
        assert seen.layouts is not None and seen.pixels is not None
        grids = geometry.tower_grids(seen.layouts)
        return given_of_grids(modules.vision_tower, grids, seen.pixels.device) | kwargs

    def enter_tower(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not seen.under_way:
            return None
        seen.pixels = args[0] if args else kwargs["pixel_values"]
        return None if recorded is not None else (args, given(kwargs))

    def forget() -> None:
        seen.forget()
        if tower is not None:
            tower.scores()

    def evidence() -> list[VisionEvidence]:
        with torch.no_grad():
            scores = [] if tower is None else tower.scores()
            views = tower_views(modules, seen, requests, normalization, scores)
            return [VisionEvidence.of(each, requests) for each in views]

    def run_tower(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def shown(*args: Any, **kwargs: Any) -> tuple[Any, list[VisionEvidence]]:
            forget()
            seen.pixels = args[0] if args else kwargs["pixel_values"]
            return run(*args, **given(kwargs)), evidence()

        if recorded is None or seen.layouts is None:
            return run(*args, **kwargs)
        pixels = seen.pixels
        if (found := recorded.encoded(shown, seen.layouts, args, kwargs)) is not None:
            output, seen.evidence = found
            return output
        forget()  # what an attempt to record has shown
        seen.pixels = pixels
        return run(*args, **given(kwargs))

    def watching(modality: Modality, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if seen.under_way:  # some models encode videos as images
            return encode(*args, **kwargs)
        inputs = inspect.signature(encode).bind(*args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        layouts = geometry.layouts(inputs) if modality == "image" else geometry.video_layouts(inputs)
        seen.begin(layouts)  # before the tower is: sizes that lie on the device are waited for
        try:
            output = encode(*args, **kwargs)
            found = evidence() if seen.evidence is None else seen.evidence
        finally:
            forget()
            seen.end()
        on_encoded(modality, output, layouts, found)
        return output

    recorded = None
    if recordings is not None:
        pruned = None if tower is None else tower.known
        recorded = recordings.tower(modules, (tuple(requests), normalization, pruned))
    named: dict[nn.Module, list[float]] = defaultdict(list)  # a layer may go by several names
    for layer in sorted({layer for request in requests for layer in request.attention_layers}):
        named[modules.vision_layer(layer)].append(layer)
    observers = {module: partial(see_attention, names) for module, names in named.items()}
    encoders: dict[str, Modality] = {"get_image_features": "image", "get_video_features": "video"}
    with ExitStack() as stack:
        for layer in {layer for request in requests for layer in request.feature_layers}:
            hook = Hook(partial(see_features, layer))
            stack.callback(modules.vision_layer(layer).register_forward_hook(hook).remove)
        stack.callback(modules.vision_tower.register_forward_pre_hook(Hook(enter_tower), with_kwargs=True).remove)
        for name, modality in encoders.items():
            if hasattr(modules.base, name):
                stack.callback(MethodHook(modules.base, name, partial(watching, modality)).remove)
        if recorded is not None:
            stack.callback(MethodHook(modules.vision_tower, "forward", run_tower).remove)
        stack.enter_context(joined_windows(modules.vision_tower))
        stack.enter_context(observed_attention(observers))
        yield
