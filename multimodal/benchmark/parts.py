"""What a call of ``generate()`` is doing when, told by hooks at the borders of its parts."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from multimodal.benchmark.variants import Variant
from multimodal.families import Modules
from multimodal.runtime.calls import PIXELS
from multimodal.runtime.hooks import Hook, MethodHook

TOWER, EVIDENCE, SELECTION = "vision tower", "evidence", "selection and merging"
PREFILL, REST = "prefill", "rest"
PARTS = (TOWER, EVIDENCE, SELECTION, PREFILL, REST)  # in the order of a call; the rest is before, between and after

Begin = Callable[[str], None]


@contextmanager
def told_parts(modules: Modules, way: Variant, begin: Begin) -> Iterator[None]:
    """Tell which part of a call begins, inside the ``with`` block, in which a variant is in place.

    The variant is opened inside of the hooks that see the tower, which it watches, and its own hooks are between the
    others. What is replayed is one part, be it the tower with its
    evidence, or the prefill with selection and merging.

    Args:
        modules: of the model.
        way: the variant.
        begin: called with the part's name.
    """
    schedule = () if way.config is None or way.recordings is not None else way.config.schedule
    layers = [step.layer for step in schedule]
    text, layer_of = modules.text_model, modules.text_layers
    stepped = [(text, SELECTION if 0 in layers else PREFILL), *((layer_of[each], SELECTION) for each in layers if each)]
    encoders = [f"get_{modality}_features" for modality in PIXELS]
    encoders = [name for name in encoders if hasattr(modules.base, name)]

    def around(first: str, then: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        begin(first)
        output = function(*args, **kwargs)
        begin(then)
        return output

    def entered(part: str, *_: Any) -> None:
        begin(part)

    with ExitStack() as stack:
        for name in encoders:
            then = REST if way.config is None else EVIDENCE
            stack.callback(MethodHook(modules.base, name, partial(around, TOWER, then)).remove)
        stack.enter_context(way.opened())
        for name in encoders:
            stack.callback(MethodHook(modules.base, name, partial(around, TOWER, REST)).remove)
        for module, part in stepped:
            before = module.register_forward_pre_hook(Hook(partial(entered, part)), prepend=True)
            after = module.register_forward_pre_hook(Hook(partial(entered, PREFILL)))
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.callback(text.register_forward_hook(Hook(partial(entered, REST)), always_call=True).remove)
        yield


class Timeline:
    """Seconds of each part of one call, which add up to its own.

    Args:
        device: where it runs; CUDA is timed with events, so that nothing waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def __len__(self) -> int:
        """Parts that have begun."""
        return len(self._marks)

    def begin(self, part: str) -> None:
        """A part begins, and the one before it ends."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def stop(self) -> dict[str, float]:
        """The last part ends; seconds of each part that there was."""
        self.begin("")
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        found: dict[str, float] = defaultdict(float)
        for (part, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            found[part] += began.elapsed_time(ended) / 1000 if self._on_gpu else ended - began
        return dict(found)


def shares(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of several timelines of one call, what share of it each part takes in the one of median length; they sum to 1."""
    median = sorted(runs, key=lambda run: sum(run.values()))[len(runs) // 2]
    return {part: median.get(part, 0.0) / sum(median.values()) for part in PARTS}
