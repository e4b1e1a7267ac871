"""Interleaved timing: what is compared runs in turn, so that a machine's drift falls on all alike."""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch


class Stopwatch:
    """Times functions by name; the first time of each is a warm-up and does not count.

    Args:
        device: where they run; CUDA is timed with events.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def time(self, name: str, function: Callable[[], object]) -> None:
        """Run a function and note how long it took."""
        self.note(name, self._run(function))

    def note(self, name: str, seconds: float) -> None:
        """Note how long something took that was timed otherwise."""
        self._seconds[name].append(seconds)

    def seconds(self, name: str) -> list[float]:
        """Those of each time that counts."""
        return self._seconds[name][1:]

    def medians(self) -> dict[str, float]:
        """Median seconds by name."""
        return {name: median(seconds[1:]) for name, seconds in self._seconds.items()}

    def _run(self, function: Callable[[], object]) -> float:
        if self._device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
