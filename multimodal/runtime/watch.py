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
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from multimodal.recording.tower import RecordedTower

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
    watch = _Watch(modules, requests, normalization, on_encoded, tower, recordings)
    with ExitStack() as stack:
        watch.attach(stack)
        yield


class _Watch:
    """See :func:`watch_vision`."""

    def __init__(
        self,
        modules: Modules,
        requests: Iterable[VisionRequest],
        normalization: Normalization | None,
        on_encoded: OnEncoded,
        tower: TowerPruning | None,
        recordings: Recordings | None,
    ) -> None:
        self._modules, self._requests, self._normalization = modules, tuple(requests), normalization
        self._on_encoded, self._tower = on_encoded, tower
        self._seen = Seen()
        known = self._requests, normalization, None if tower is None else tower.known
        self._recorded = None if recordings is None else recordings.tower(modules, known)

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        modules, requests = self._modules, self._requests
        for layer in {layer for request in requests for layer in request.feature_layers}:
            hook = Hook(partial(self._see_features, layer))
            stack.callback(modules.vision_layer(layer).register_forward_hook(hook).remove)
        hook = Hook(self._enter_tower)
        stack.callback(modules.vision_tower.register_forward_pre_hook(hook, with_kwargs=True).remove)
        encoders: dict[str, Modality] = {"get_image_features": "image", "get_video_features": "video"}
        for name, modality in encoders.items():
            if hasattr(modules.base, name):
                stack.callback(MethodHook(modules.base, name, partial(self._encode, modality)).remove)
        if self._recorded is not None:
            stack.callback(MethodHook(modules.vision_tower, "forward", partial(self._run, self._recorded)).remove)
        stack.enter_context(joined_windows(modules.vision_tower))
        named: dict[nn.Module, list[float]] = defaultdict(list)  # a layer may go by several names
        for layer in sorted({layer for request in requests for layer in request.attention_layers}):
            named[modules.vision_layer(layer)].append(layer)
        observers = {module: partial(self._see_attention, names) for module, names in named.items()}
        stack.enter_context(observed_attention(observers))

    def _encode(self, modality: Modality, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen, geometry = self._seen, self._modules.geometry
        if seen.under_way:  # some models encode videos as images
            return encode(*args, **kwargs)
        inputs = inspect.signature(encode).bind(*args, **kwargs).arguments
        inputs |= inputs.pop("kwargs", {})
        # sizes that lie on the device are waited for, so before the tower is under way
        layouts = geometry.layouts(inputs) if modality == "image" else geometry.video_layouts(inputs)
        seen.begin(layouts)
        try:
            output = encode(*args, **kwargs)
            evidence = self._evidence() if seen.evidence is None else seen.evidence
        finally:
            self._forget()
            seen.end()
        self._on_encoded(modality, output, layouts, evidence)
        return output

    def _enter_tower(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._seen.under_way:
            return None
        self._seen.pixels = args[0] if args else kwargs["pixel_values"]
        return None if self._recorded is not None else (args, self._given(kwargs))

    def _run(self, recorded: "RecordedTower", run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        seen = self._seen
        if seen.layouts is None:
            return run(*args, **kwargs)
        pixels = seen.pixels
        if (found := recorded.encoded(partial(self._shown, run), seen.layouts, args, kwargs)) is not None:
            output, seen.evidence = found
            return output
        self._forget()  # what an attempt to record has shown
        seen.pixels = pixels
        return run(*args, **self._given(kwargs))

    def _shown(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, list[VisionEvidence]]:
        """The tower's output, and the evidence of what it has shown."""
        self._forget()
        self._seen.pixels = args[0] if args else kwargs["pixel_values"]
        return run(*args, **self._given(kwargs)), self._evidence()

    def _given(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The tower's arguments, with those that follow from what is encoded."""
        seen, modules = self._seen, self._modules
        assert seen.layouts is not None and seen.pixels is not None
        grids = modules.geometry.tower_grids(seen.layouts)
        return given_of_grids(modules.vision_tower, grids, seen.pixels.device) | kwargs

    def _evidence(self) -> list[VisionEvidence]:
        with torch.no_grad():
            scores = [] if self._tower is None else self._tower.scores()
            views = tower_views(self._modules, self._seen, self._requests, self._normalization, scores)
            return [VisionEvidence.of(each, self._requests) for each in views]

    def _forget(self) -> None:
        self._seen.forget()
        if self._tower is not None:
            self._tower.scores()

    def _see_attention(
        self,
        names: Sequence[float],
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> None:
        if self._seen.under_way:
            for layer in names:
                self._seen.attention[layer].append(LayerAttention(queries, keys, values, scaling))

    def _see_features(self, layer: float, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._seen.under_way:
            self._seen.features[layer].append(output[0] if isinstance(output, tuple) else output)
