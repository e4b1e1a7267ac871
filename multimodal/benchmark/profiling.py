"""What the host does in one call, and for how long the device works: launches, waits, operators, busy time."""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
GRAPHS, HOST_READS = "cudaGraphLaunch", "aten::_local_scalar_dense"
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
MARK = "flowprune: "  # before the names of parts
DEVICE_BOUND = 0.8  # share of a call in which the device works


class Profile(BaseModel):
    """Of one call.

    Args:
        counts: of kernels and graphs launched, waits for the device, and values read by the host; on a device that
            launches nothing, of operators.
        busy: seconds in which the device worked; None: the host computes.
        busy_parts: of them, by the part that launched the work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    counts: dict[str, int]
    busy: float | None = None
    busy_parts: dict[str, float] = {}

    def per(self, calls: int) -> "Profile":
        """The mean of several calls that were read as one."""
        return Profile(
            counts={name: round(count / calls) for name, count in self.counts.items()},
            busy=None if self.busy is None else self.busy / calls,
            busy_parts={part: seconds / calls for part, seconds in self.busy_parts.items()},
        )


class Ranges:
    """Parts of a call, as ranges of a profile that follow each other."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def begin(self, part: str) -> None:
        """A part begins, and the one before it ends."""
        self._stack.close()
        self._stack.enter_context(record_function(MARK + part))

    def stop(self) -> None:
        """The last part ends."""
        self._stack.close()


def profiled(device: torch.device, call: Callable[[], object]) -> Profile:
    """Run a call once under torch's profiler.

    Args:
        device: where it runs.
        call: which begins its parts in a :class:`Ranges`.
    """
    on_gpu = device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # which else tells the terminal when it starts
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    return read_events(profiler.events() or [], on_gpu)


def read_events(events: Sequence[Any], on_gpu: bool) -> Profile:
    """What a profile's events tell of the call inside of its parts.

    Args:
        events: as torch's profiler lists them.
        on_gpu: whether there is a device that works beside the host.
    """
    ours = [event for event in events if event.name.startswith(MARK)]
    ranges = [event for event in ours if event.device_type == DeviceType.CPU]
    parts = sorted((event.time_range.start, event.name.removeprefix(MARK)) for event in ranges)
    began, ended = (parts[0][0], max(each.time_range.end for each in ranges)) if ranges else (0.0, float("inf"))
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    inside = [event for event in on_host if began <= event.time_range.start <= ended]
    if not on_gpu:
        outermost = [event for event in inside if event.name.startswith("aten::") and not _in_operator(event)]
        return Profile(counts={"operators": len(outermost)})
    names = Counter(event.name for event in inside)
    counts = {
        "kernels": sum(names[name] for name in LAUNCHES),
        "graphs": names[GRAPHS],
        "waits": sum(names[name] for name in WAITS),
        "values read": names[HOST_READS],
    }
    works = [event for event in events if event.device_type == DeviceType.CUDA and not event.name.startswith(MARK)]
    by_part: Counter[str] = Counter()
    starts = [start for start, _ in parts]
    for event in inside:
        if event.kernels and parts:
            part = parts[max(0, bisect_right(starts, event.time_range.start) - 1)][1]
            by_part[part] += sum(kernel.duration for kernel in event.kernels)
    busy = union((event.time_range.start, event.time_range.end) for event in works)
    return Profile(counts=counts, busy=busy / 1e6, busy_parts={part: time / 1e6 for part, time in by_part.items()})


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of what intervals cover together."""
    covered, last = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    return covered


def limited_by(seconds: float, busy: float | None) -> str:
    """In words, what holds a call: the device, or the host that feeds it; – where the device did not tell."""
    if busy is None:
        return "–"
    return f"{'device' if busy >= DEVICE_BOUND * seconds else 'host'}-bound, {busy / seconds:.0%} busy"


def _in_operator(event: Any) -> bool:
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith("aten::") or _in_operator(parent))
