"""The device that is measured: its name, and how fast it computes and copies at best."""

import platform
import re
from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from multimodal.benchmark.stopwatch import Stopwatch

REPEATS = 10
SIDE = {"cuda": 8192}  # of the matrices that are multiplied
NUMBERS = {"cuda": 1 << 29}  # that are copied
SIDE_ELSEWHERE, NUMBERS_ELSEWHERE = 1024, 1 << 25


class Peaks(BaseModel):
    """What a device reaches in a large matrix product and a large copy.

    Args:
        flops: a second, in the dtype that is measured.
        bandwidth: bytes read and written a second.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flops: float
    bandwidth: float


def device_name(device: torch.device) -> str:
    """What times depend on beside the model: the GPU, or the CPU and how many threads use it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} with OMP_NUM_THREADS={torch.get_num_threads()}"


def device_kind(device: torch.device) -> str:
    """What names a table of ratios: ``cpu``, or the GPU in lower case."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Multiply two large matrices and copy a large tensor, a few times; the fastest counts."""
    side, numbers = SIDE.get(device.type, SIDE_ELSEWHERE), NUMBERS.get(device.type, NUMBERS_ELSEWHERE)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.ones(numbers, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = _fastest(device, lambda: left @ right)
    return Peaks(flops=2 * side**3 / product, bandwidth=2 * numbers / _fastest(device, lambda: target.copy_(source)))


def _fastest(device: torch.device, function: Callable[[], object]) -> float:
    watch = Stopwatch(device)
    for _ in range(1 + REPEATS):
        watch.time("", function)
    return min(watch.seconds(""))


def peak_bytes(device: torch.device, function: Callable[[], object]) -> int | None:
    """Bytes that a call needs at most beside what is there before it; None where the device does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before
