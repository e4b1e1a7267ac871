"""The vision tower of one ``prune()`` block, recorded with what is made of all that it shows."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from multimodal.constants import constants_held
from multimodal.errors import reason_of
from multimodal.evidence import VisionEvidence
from multimodal.families import Modules
from multimodal.layout import Layout
from multimodal.recording.reasons import parts_reason, tower_reason
from multimodal.recording.recorded import Recorded
from multimodal.recording.recordings import Recordings

Shown = Callable[..., tuple[Any, list[VisionEvidence]]]  # the tower's arguments -> its output, and what it showed


class RecordedTower:
    """Encodes by recordings what they can encode.

    Args:
        recordings: that are kept.
        modules: of the model.
        known: equal where the tower is asked for the same.
    """

    def __init__(self, recordings: Recordings, modules: Modules, known: Hashable) -> None:
        tower = modules.vision_tower
        weights = tuple(parameter.data_ptr() for parameter in tower.parameters())
        self._recordings, self._modules = recordings, modules
        self._known = ref(tower), weights, known
        self._hooks = [
            hooks for module in tower.modules() for hooks in (module._forward_pre_hooks, module._forward_hooks)
        ]
        self._hooked, self._reason = -1, ""

    def encoded(
        self, shown: Shown, layouts: Sequence[Layout], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[VisionEvidence]] | None:
        """The tower's output and the evidence of its views; None: it must be run otherwise.

        Args:
            shown: runs the tower and makes evidence of what it shows.
            layouts: of the images or videos that it is given.
            args: of the tower.
            kwargs: of the tower.
        """
        own, tower = self._recordings, self._modules.vision_tower
        pixels = args[0] if args else kwargs["pixel_values"]
        if reason := tower_reason(tower, pixels, self._modules.geometry, layouts) or self._parts_reason():
            own.decline(reason)
            return None
        leaves, form = tree_flatten((args, kwargs))
        given = tuple(_kind(leaf, pixels.device) for leaf in leaves), repr(form)
        shapes = tuple((layout.grids, layout.views) for layout in layouts) if pixels.ndim == 2 else ()
        asked = "tower", *self._known, tower.config._attn_implementation
        key = *asked, shapes, given
        with own.lock:
            if (known := cast(TowerRecording | None, own.find(key))) is not None:
                return known.replay(shown, args, kwargs)
            pool = own.pool(pixels.device)
            made = own.record(key, lambda: TowerRecording(shown, args, kwargs, pixels.device, pool), alike=asked)
            return None if made is None else made.taken()

    def _parts_reason(self) -> str:
        """Why the tower cannot be recorded as it is; found again only where hooks have come or gone."""
        if (hooked := sum(map(len, self._hooks))) != self._hooked:
            self._hooked, self._reason = hooked, parts_reason(self._modules.vision_tower, "vision tower") or ""
        return self._reason


class TowerRecording:
    """A tower and its evidence, for all images of one shape.

    Args:
        shown: runs the tower and makes evidence of what it shows.
        args: of the tower.
        kwargs: of the tower.
        device: where.
        pool: of memory (:class:`Recorded`).
    """

    def __init__(
        self, shown: Shown, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device, pool: Any
    ) -> None:
        given, self._form = tree_flatten((args, kwargs))
        with _plainly(), constants_held() as self._constants:
            self._given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in given]
            try:
                self._recorded = Recorded(self._run, device, pool, shown)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise RuntimeError(f"the vision tower: {reason_of(error)}") from error

    @property
    def bytes(self) -> int:
        """Device memory that it holds."""
        outputs = sum(leaf.nbytes for leaf in tree_leaves(self._recorded.output) if isinstance(leaf, Tensor))
        inputs = sum(leaf.nbytes for leaf in self._given if isinstance(leaf, Tensor))
        return inputs + max(outputs, self._recorded.bytes)

    def replay(self, shown: Shown, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[VisionEvidence]]:
        """Encode other images of the same shape; arguments as above."""
        with _plainly():
            for own, new in zip(self._given, tree_leaves((args, kwargs)), strict=True):
                if isinstance(own, Tensor):
                    own.copy_(new, non_blocking=True)
            self._recorded.replay(shown)
        return self.taken()

    def taken(self) -> tuple[Any, list[VisionEvidence]]:
        """The output and the evidence of what was encoded last, in memory of their own."""
        copies: dict[Tensor, Tensor] = {}  # the last hidden state is there twice

        def copied(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf not in copies:
                copies[leaf] = leaf.clone()
            return copies[leaf] if isinstance(leaf, Tensor) else leaf

        output, stored = tree_map(copied, self._recorded.output)
        return output, [VisionEvidence(*each) for each in zip(self._views, stored, strict=True)]

    def _run(self, shown: Shown) -> tuple[Any, list[dict[Any, dict[str, Tensor]]]]:
        args, kwargs = tree_unflatten(self._given, self._form)
        output, evidence = shown(*args, **kwargs)
        self._views = [own.views for own in evidence]
        return output, [{request: dict(stored) for request, stored in own.stored.items()} for own in evidence]


@contextmanager
def _plainly() -> Iterator[None]:
    """Neither inference tensors, which could not be written to later, nor gradients."""
    with torch.inference_mode(False), torch.no_grad():  # in this order: the first switches gradients on
        yield


def _kind(leaf: Any, device: torch.device) -> Hashable:
    """What of an argument a recording depends on; tensors on the host can be read, those on the device not."""
    if not isinstance(leaf, Tensor):
        return type(leaf), leaf
    value = None if leaf.device == device else tuple(leaf.flatten().tolist())
    return leaf.shape, leaf.dtype, leaf.device, value
