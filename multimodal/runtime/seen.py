"""What the vision tower shows while it encodes, view by view."""

import threading
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.errors import FlowpruneError
from multimodal.evidence import LayerAttention, TowerViews, VisionEvidence, VisionRequest
from multimodal.families import Modules
from multimodal.layout import Layout


class Seen(threading.local):
    """What the encoding under way in this thread has shown.

    Attributes:
        layouts: of what is encoded; None: nothing is under way.
        pixels: that the tower was given.
        attention: of each layer that was asked for, in the order of the calls.
        features: of each layer that was asked for, in the order of the calls.
        evidence: made of it by a recording of the tower; None: it is to be made.
    """

    def __init__(self) -> None:
        self.layouts: Sequence[Layout] | None = None
        self.evidence: list[VisionEvidence] | None = None
        self.forget()

    @property
    def under_way(self) -> bool:
        """Whether something is encoded."""
        return self.layouts is not None

    def begin(self, layouts: Sequence[Layout]) -> None:
        """Something is encoded from here on."""
        self.end()
        self.layouts = layouts

    def end(self) -> None:
        """Let go of everything."""
        self.layouts = self.evidence = None
        self.forget()

    def forget(self) -> None:
        """Let go of what the tower has shown."""
        self.pixels: Tensor | None = None
        self.attention: dict[float, list[LayerAttention]] = defaultdict(list)
        self.features: dict[float, list[Tensor]] = defaultdict(list)


def tower_views(
    modules: Modules,
    seen: Seen,
    requests: Sequence[VisionRequest],
    normalization: tuple[Sequence[float], Sequence[float]] | None,
    scores: Sequence[Tensor],
) -> list[TowerViews]:
    """What was seen, views of one size together.

    Args:
        modules: of the model.
        seen: by the encoding under way.
        requests: what is asked of the tower.
        normalization: mean and standard deviation of the image processor, for requests that read pixels.
        scores: of what prunes inside the tower.
    """
    assert seen.layouts is not None
    sizes = [patches for layout in seen.layouts for patches in layout.views]
    attention = {layer: _by_view(calls, sizes) for layer, calls in seen.attention.items()}
    features = {layer: _split(calls, sizes) for layer, calls in seen.features.items()}
    by_rule = _split(scores, sizes) if scores else None
    pixels: Sequence[Tensor] | None = None
    if normalization is not None and any(request.reads_pixels for request in requests):
        assert seen.pixels is not None
        patches = modules.geometry.patch_pixels(seen.pixels, seen.layouts)
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

    Towers call their attention with all views as a batch, with one view at a time, or (flash attention, windows that
    attend together) with all of them in one packed sequence.
    """
    if len(calls) == 1 and len(calls[0].queries) == len(sizes):
        return calls[0]
    parts = [_split([getattr(call, name) for call in calls], sizes) for name in ("queries", "keys", "values")]
    return [LayerAttention(q, k, v, calls[0].scaling) for q, k, v in zip(*parts, strict=True)]


def _split(calls: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """Tensors ``[views, …, tokens, C]`` of each call as one ``[…, tokens, C]`` a view."""
    views = [view for call in calls for view in (call if call.ndim > 2 else call.unsqueeze(0))]
    if len(views) == len(sizes):
        return views
    packed = torch.cat(views, dim=-2) if len(views) > 1 else views[0]
    return list(packed.split(list(sizes), dim=-2))


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
    offset, factor = constant(_levels, pixels.device, tuple(mean), tuple(std))
    return torch.addcmul(offset, pixels.float(), factor).round().clamp(0, 255).transpose(-1, -2)


def _levels(*parts: tuple[float, ...]) -> Tensor:
    return torch.tensor(parts, dtype=torch.float32, device="cpu").mul(255).unsqueeze(-1)
