"""Windows of one size attend in one call of the model's own backend, instead of one call a window.

Qwen-VL's towers and their like pack all images into one sequence, cut it where ``cu_seqlens`` says, and attend within
each part: a window of Qwen2.5-VL, an image, a frame. Only flash attention takes the whole sequence; for any other
backend they loop over the parts, thousands of small calls an image, and wait for the device in every layer. Inside a
block such a layer is told of one part, and what it then asks for is computed part by part, those of one size together.
"""

import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from multimodal.runtime.attention import EAGER, run_attention
from multimodal.runtime.hooks import MethodHook

ENDS = "cu_seqlens"
EAGER_WEIGHTS = 1 << 26  # attention weights that one eager call may form


@dataclass(frozen=True)
class Packing:
    """How a packed sequence is cut.

    Args:
        groups: (parts, tokens of each), for each size.
        order: which token comes first, second, … where parts of one size stand together ``[tokens]``; None: they do.
        inverse: of it.
        whole: where a sequence of one part is cut ``[2]``, on the CPU.
    """

    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None
    whole: Tensor


class Packings:
    """How sequences are cut at some ends: read from the device once for every tensor of ends."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def at(self, ends: Tensor) -> Packing:
        """How a sequence is cut at these ends ``[parts + 1]``."""
        if (known := self._known.get(ends)) is None:
            known = self._known[ends] = packing(tuple(ends.diff().tolist()), ends.device)
        return known


@lru_cache(maxsize=64)
def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """How a sequence of parts of these lengths is cut, for tensors on a device."""
    members = defaultdict(list)
    for part, length in enumerate(lengths):
        members[length].append(part)
    places = [part for parts in members.values() for part in parts]
    with torch.inference_mode(False):  # they are kept, and an inference tensor could not be used for gradients later
        tokens = torch.arange(sum(lengths), device="cpu").split(list(lengths))
        order = inverse = None
        if places != sorted(places):
            order = torch.cat([tokens[part] for part in places])
            order, inverse = (index.to(device, non_blocking=True) for index in (order, order.argsort()))
        groups = tuple((len(parts), length) for length, parts in members.items())
        return Packing(groups, order, inverse, torch.tensor([0, sum(lengths)], device="cpu"))


class _UnderWay(threading.local):
    """The layer under way in this thread: how what it asks for is cut."""

    packing: Packing | None = None


@contextmanager
def joined_windows(tower: nn.Module) -> Iterator[None]:
    """Let a tower's windows attend together inside the ``with`` block; a tower that packs nothing is left alone."""
    packings, own = Packings(), _UnderWay()

    def run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        config, ends = module.config, kwargs.get(ENDS)
        flash = "flash" in (config._attn_implementation or "")  # type: ignore[union-attr, operator]
        weights = kwargs.get("output_attentions", getattr(config, "output_attentions", False))
        if ends is None or flash or weights:
            return forward(*args, **kwargs)
        own.packing = packings.at(ends)
        try:
            output = forward(*args, **kwargs | {ENDS: own.packing.whole})
            # an attention function that was not there when the block was opened takes no notice of it
            return output if own.packing is None else forward(*args, **kwargs)
        finally:
            own.packing = None

    def attend(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        packing, own.packing = own.packing, None
        return function(*args, **kwargs) if packing is None else _attended(packing, function, *args, **kwargs)

    modules = [module for module in tower.modules() if _packs(module)]
    with ExitStack() as stack:
        for module in modules:
            stack.callback(MethodHook(module, "forward", partial(run, module)).remove)
        stack.enter_context(run_attention(dict.fromkeys(modules, attend)))
        yield


def _packs(module: nn.Module) -> bool:
    """Whether a module is the attention of packed sequences: the innermost that is told where they end."""
    inside = (inner for inner in module.modules() if inner is not module)
    return _takes_ends(module) and hasattr(module, "config") and not any(map(_takes_ends, inside))


def _takes_ends(module: nn.Module) -> bool:
    return ENDS in inspect.signature(inspect.unwrap(type(module).forward)).parameters


def _attended(
    packing: Packing,
    function: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Each part of a sequence ``[1, heads, tokens, d]`` attends to itself → ``[1, tokens, heads, d]``."""
    parts, outputs, first = [query, key, value], [], 0
    if packing.order is not None:
        parts = [part.index_select(2, packing.order) for part in parts]
    for number, length in packing.groups:
        most = number
        if function.__name__ == EAGER:
            most = max(1, EAGER_WEIGHTS // (query.shape[1] * length**2))
        tokens = [part[0, :, first : first + number * length] for part in parts]
        batches = [part.unflatten(1, (number, length)).transpose(0, 1).split(most) for part in tokens]
        outputs += [function(module, *own, *args, **kwargs)[0].flatten(0, 1) for own in zip(*batches, strict=True)]
        first += number * length
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    output = output if packing.inverse is None else output.index_select(0, packing.inverse)
    return output.unsqueeze(0), None
