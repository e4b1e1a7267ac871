"""Windows of one size attend in one call of the model's own backend, instead of one call a window.

Qwen-VL's towers and their like pack all images into one sequence, cut it where ``cu_seqlens`` says, and attend within
each part: a window of Qwen2.5-VL, an image, a frame. Only flash attention takes the whole sequence; for any other
backend they loop over the parts, thousands of small calls an image, and wait for the device in every layer. Inside a
block such a layer is told of one part, and what it then asks for is computed part by part, those of one size together.
"""

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from multimodal.constants import constant
from multimodal.runtime.attention import EAGER, run_attention
from multimodal.runtime.hooks import MethodHook

ENDS = "cu_seqlens"
EAGER_WEIGHTS = 1 << 26  # attention weights that one eager call may form

_told = WeakTensorKeyDictionary()  # lengths of the parts, by where they end


@dataclass(frozen=True)
class Cut:
    """How a packed sequence is cut.

    Args:
        lengths: of its parts.
        sizes: (length, parts of that length), in order of appearance.
        whole: where a sequence of one part would be cut ``[2]``, on the CPU.
    """

    lengths: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    whole: Tensor

    @cached_property
    def mixed(self) -> bool:
        """Whether parts of one length do not stand together."""
        return self.lengths != tuple(length for length, parts in self.sizes for _ in range(parts))


def tell_ends(ends: Tensor, lengths: Sequence[int]) -> None:
    """Tell how long the parts of a sequence are that is cut at some ends, which would be waited for otherwise.

    Args:
        ends: that a tower will be handed ``[parts + 1]``.
        lengths: of the parts.
    """
    _told[ends] = tuple(lengths)


def _lengths(ends: Tensor) -> tuple[int, ...]:
    """How long the parts are that end there: read from the device once for every tensor that nobody told of."""
    if ends not in _told:
        tell_ends(ends, ends.diff().tolist())
    return _told[ends]


@lru_cache(maxsize=64)
def cut_into(lengths: tuple[int, ...]) -> Cut:
    """How a sequence of parts of these lengths is cut."""
    with torch.inference_mode(False):  # it is kept, and an inference tensor could not be used for gradients later
        return Cut(lengths, tuple(Counter(lengths).items()), torch.tensor([0, sum(lengths)], device="cpu"))


def _order(cut: tuple[int, ...]) -> Tensor:
    """Which token comes first, second, … where parts of one length stand together."""
    tokens = torch.arange(sum(cut), device="cpu").split(list(cut))
    first = list(Counter(cut))
    return torch.cat([tokens[part] for part in sorted(range(len(cut)), key=lambda part: first.index(cut[part]))])


def _inverse(cut: tuple[int, ...]) -> Tensor:
    return _order(cut).argsort()


class _UnderWay(threading.local):
    """The layer under way in this thread: how what it asks for is cut."""

    cut: Cut | None = None


@contextmanager
def joined_windows(tower: nn.Module) -> Iterator[None]:
    """Let a tower's windows attend together inside the ``with`` block; a tower that packs nothing is left alone."""
    own = _UnderWay()

    def run(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        config, ends = module.config, kwargs.get(ENDS)
        flash = "flash" in (config._attn_implementation or "")  # type: ignore[union-attr, operator]
        weights = kwargs.get("output_attentions", getattr(config, "output_attentions", False))
        if ends is None or flash or weights:
            return forward(*args, **kwargs)
        own.cut = cut_into(_lengths(ends))
        try:
            output = forward(*args, **kwargs | {ENDS: own.cut.whole})
            # an attention function that was not there when the block was opened takes no notice of it
            return output if own.cut is None else forward(*args, **kwargs)
        finally:
            own.cut = None

    def attend(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cut, own.cut = own.cut, None
        return function(*args, **kwargs) if cut is None else _attended(cut, function, *args, **kwargs)

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
    return _has_ends(type(module).forward)


@cache
def _has_ends(forward: Callable[..., Any]) -> bool:
    return ENDS in inspect.signature(inspect.unwrap(forward)).parameters


def _attended(
    cut: Cut,
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
    if cut.mixed:
        order = constant(_order, query.device, cut.lengths)
        parts = [part.index_select(2, order) for part in parts]
    for length, number in cut.sizes:
        most = number
        if getattr(function, "__name__", None) == EAGER:
            most = max(1, EAGER_WEIGHTS // (query.shape[1] * length**2))
        tokens = [part[0, :, first : first + number * length] for part in parts]
        batches = [part.unflatten(1, (number, length)).transpose(0, 1).split(most) for part in tokens]
        outputs += [function(module, *own, *args, **kwargs)[0].flatten(0, 1) for own in zip(*batches, strict=True)]
        first += number * length
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if cut.mixed:
        output = output.index_select(0, constant(_inverse, query.device, cut.lengths))
    return output.unsqueeze(0), None
