"""A computation on tensors at fixed addresses, recorded once and replayed."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from multimodal.recording.unwaiting import unwaiting

Output = TypeVar("Output")


class Recorded(Generic[Output]):
    """On CUDA a graph of all launches of a function, replayed by one call; elsewhere the function is run again.

    Args:
        function: computes tensors of tensors that stay where they are; it must not wait for the device, copy from the
            host, or have a shape that depends on data; run twice, it must leave what one run leaves.
        device: where.
        pool: of memory that graphs which never run at the same time share (``torch.cuda.graph_pool_handle()``).
        given: that the function is called with, which is not kept: a model, which must not be kept alive.

    Attributes:
        output: what the function returned, any nesting of tensors; every replay writes it anew, in place.
        bytes: of device memory that the recording holds beside the function's own tensors.

    Raises:
        RuntimeError: the function cannot be recorded.
    """

    def __init__(self, function: Callable[..., Output], device: torch.device, pool: Any, *given: Any) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        self.bytes = 0
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.output = self._captured(device, pool, given)
        else:
            self.output = self._tried(device, given)

    def _tried(self, device: torch.device, given: tuple[Any, ...]) -> Output:
        self._function(*given)  # constants are made, libraries choose kernels and reserve workspaces
        with unwaiting(device):
            return self._function(*given)

    def _captured(self, device: torch.device, pool: Any, given: tuple[Any, ...]) -> Output:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._tried(device, given)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        before, graph = torch.cuda.memory_reserved(device), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads go on
            output = self._function(*given)
        self._graph, self.bytes = graph, torch.cuda.memory_reserved(device) - before
        self.replay()  # a capture computes nothing
        return output

    def replay(self, *given: Any) -> Output:
        """Compute the output of what the function's tensors hold now."""
        if self._graph is not None:
            self._graph.replay()
            return self.output
        for own, new in zip(tree_leaves(self.output), tree_leaves(self._function(*given)), strict=True):
            if isinstance(own, Tensor):
                own.copy_(new)
        return self.output
