"""Whether a function can be recorded: nothing in it waits for the device, and nothing comes from the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: operators whose result, or its shape, must come to the host
WAITS = frozenset(
    {
        "_local_scalar_dense",
        "_unique2",
        "bincount",
        "equal",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
    }
)
CHOOSE = frozenset({"index", "index_put", "index_put_"})  # which count what a mask chooses
COPIES = frozenset({"_to_copy", "copy", "copy_"})


class _Unwaiting(TorchDispatchMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in given if tensor.device == self._device]
        if here and (name in WAITS or (name in CHOOSE and any(map(_is_mask, tree_leaves(args[1]))))):
            raise RuntimeError(f"{name} waits for the device")
        if name == "lift_fresh" and any(tensor.ndim for tensor in here):
            raise RuntimeError(f"{name} copies numbers of the host to the device")
        output = function(*args, **(kwargs or {}))
        both = [*given, output] if name in COPIES else given
        elsewhere = [tensor for tensor in both if tensor.device != self._device and tensor.ndim]
        if elsewhere and len(elsewhere) < len(both):
            raise RuntimeError(f"{name} copies between {elsewhere[0].device.type} and {self._device.type}")
        return output


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def unwaiting(device: torch.device) -> Iterator[None]:
    """Refuse what cannot be recorded inside the ``with`` block.

    Args:
        device: for which nothing may wait.

    Raises:
        RuntimeError: something waits for the device, or is copied to or from it.
    """
    with _Unwaiting(device):
        yield
