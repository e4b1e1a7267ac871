"""Vision evidence as a search stores it and a prompt reads it: one type, live and cached."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from multimodal.evidence.request import Stored, VisionRequest
from multimodal.evidence.tower import TowerViews
from multimodal.families import Geometry
from multimodal.layout import Layout


@dataclass(frozen=True)
class VisionEvidence:
    """What the vision tower showed of some views of one size.

    Args:
        views: which of those that were encoded together, in order.
        stored: what each request collected, tensors with a leading dimension of views.
    """

    views: tuple[int, ...]
    stored: Mapping[VisionRequest, Stored]

    @classmethod
    def of(cls, seen: TowerViews, requests: Iterable[VisionRequest]) -> "VisionEvidence":
        """Collect what answers some requests."""
        return cls(seen.views, {request: request.collect(seen) for request in requests})

    def answer(self, request: VisionRequest) -> Tensor:
        """By patch ``[views, patches]`` or ``[views, patches, C]``.

        Raises:
            KeyError: nothing that was collected answers it.
        """
        for collected, stored in self.stored.items():
            if collected.covers(request):
                return request.answer(stored, collected)
        raise KeyError(request)

    def shifted(self, views: int) -> "VisionEvidence":
        """The same, its views counted from another number on."""
        return replace(self, views=tuple(view + views for view in self.views))

    def of_views(self, views: Sequence[int]) -> "VisionEvidence | None":
        """What it shows of some views, counted anew in their order; None if that is nothing."""
        numbers = {view: number for number, view in enumerate(views)}
        own = [place for place, view in enumerate(self.views) if view in numbers]
        if not own:
            return None
        part = self.mapped(lambda tensor: tensor[own])
        return replace(part, views=tuple(numbers[self.views[place]] for place in own))

    def to(self, device: torch.device) -> "VisionEvidence":
        """The same on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "VisionEvidence":
        """The same with every tensor changed."""
        stored = {kind: {name: change(t) for name, t in own.items()} for kind, own in self.stored.items()}
        return replace(self, stored=stored)

    @property
    def alike(self) -> Any:
        """Equal for evidence that can be stacked."""
        return tuple((kind, name, t.shape[1:]) for kind, own in self.stored.items() for name, t in own.items())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        return {
            f"{number}.{name}": tensor
            for number, own in enumerate(self.stored.values())
            for name, tensor in own.items()
        }

    def described(self) -> dict[str, Any]:
        """Everything else, as plain JSON."""
        requests = [{"kind": type(request).__name__, **asdict(request)} for request in self.stored]  # type: ignore[call-overload]
        return {"views": self.views, "requests": requests}

    @classmethod
    def restored(cls, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "VisionEvidence":
        """From :meth:`described` and :meth:`tensors`."""
        stored: dict[VisionRequest, Stored] = {}
        for number, fields in enumerate(described["requests"]):
            request = VisionRequest.kinds[fields["kind"]](**{k: v for k, v in fields.items() if k != "kind"})
            start = f"{number}."
            stored[request] = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        return cls(tuple(described["views"]), stored)


def stacked(evidence: Sequence[VisionEvidence]) -> list[VisionEvidence]:
    """The same evidence, views of one size together."""
    alike: dict[Any, list[VisionEvidence]] = {}
    for own in evidence:
        alike.setdefault(own.alike, []).append(own)
    return [
        VisionEvidence(
            tuple(view for own in group for view in own.views),
            {
                request: {name: torch.cat([own.stored[request][name] for own in group]) for name in stored}
                for request, stored in group[0].stored.items()
            },
        )
        for group in alike.values()
    ]


def token_evidence(
    geometry: Geometry,
    requests: Iterable[VisionRequest],
    layouts: Sequence[Layout],
    evidence: Sequence[VisionEvidence],
) -> dict[VisionRequest, list[Tensor]]:
    """Answers by visual token, through the model's own packing code.

    Args:
        geometry: of the model.
        requests: what is asked.
        layouts: of the images and videos.
        evidence: of all of their views.

    Returns:
        ``[visual tokens]``, or ``[visual tokens, C]``, for each image or video; NaN at newline tokens.
    """
    return {request: _packed(geometry, request, layouts, evidence) for request in requests}


def _packed(
    geometry: Geometry, request: VisionRequest, layouts: Sequence[Layout], evidence: Sequence[VisionEvidence]
) -> list[Tensor]:
    answers = [own.answer(request) for own in evidence]
    statistic = answers[0].ndim == 2
    views: dict[int, Tensor] = {}
    for own, answer in zip(evidence, answers, strict=True):
        views |= zip(own.views, answer.unsqueeze(-1) if statistic else answer, strict=True)
    starts = accumulate((len(layout.views) for layout in layouts), initial=0)
    own_views = [
        [views[start + view] for view in range(len(layout.views))]
        for start, layout in zip(starts, layouts, strict=False)
    ]
    members: dict[Layout, list[int]] = {}
    for number, layout in enumerate(layouts):
        members.setdefault(layout, []).append(number)
    found: dict[int, Tensor] = {}
    for layout, numbers in members.items():  # images of one layout go through together, as channels side by side
        by_view = zip(*(own_views[number] for number in numbers), strict=True)
        side_by_side = [each[0] if len(each) == 1 else torch.cat(each, -1) for each in by_view]
        [packed] = geometry.pack(side_by_side, [layout])
        found |= zip(numbers, packed.chunk(len(numbers), -1), strict=True)
    tokens = [found[number] for number in range(len(layouts))]
    return [image[:, 0] for image in tokens] if statistic else tokens
