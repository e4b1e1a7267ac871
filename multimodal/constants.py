"""Tensors that follow from layouts and parameters alone: made once, and copied to a device once.

A copy from the host inside a prefill would make it wait, and cannot be recorded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

_holding: ContextVar[list[Tensor] | None] = ContextVar("_holding", default=None)


def constant(make: Callable[..., Tensor], device: torch.device, *arguments: object) -> Tensor:
    """What a function makes on the CPU of some hashable arguments, on a device; nobody may write to it."""
    made = _made(make, device, arguments)
    if (held := _holding.get()) is not None:
        held.append(made)
    return made


@lru_cache(maxsize=1024)
def _made(make: Callable[..., Tensor], device: torch.device, arguments: tuple[object, ...]) -> Tensor:
    with torch.inference_mode(False):  # autograd takes no tensor of inference mode
        return make(*arguments).to(device)


@contextmanager
def constants_held() -> Iterator[list[Tensor]]:
    """The constants that are asked for inside the block: who goes on reading their memory must keep them."""
    held: list[Tensor] = []
    token = _holding.set(held)
    try:
        yield held
    finally:
        _holding.reset(token)


def integers(*values: int) -> Tensor:
    """Some integers, on the CPU ``[values]``."""
    return torch.tensor(values, dtype=torch.long, device="cpu")


def counting(first: int, end: int) -> Tensor:
    """``first`` … ``end − 1``, on the CPU."""
    return torch.arange(first, end, device="cpu")
