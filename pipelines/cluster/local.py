"""Workers as processes of this host, one a GPU where there are any."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from multimodal import FlowpruneError
from pipelines.cluster.worker_log import reason
from pipelines.settings import LocalCluster, Settings


def check(settings: Settings) -> None:
    """Refuse more workers than GPUs.

    Raises:
        FlowpruneError: there are GPUs, and fewer of them.
    """
    assert isinstance(settings.cluster, LocalCluster)
    workers, devices = settings.cluster.workers, _devices(settings)
    if devices and workers > len(devices):
        raise FlowpruneError(
            f"cluster.workers is {workers} and this host shows {len(devices)} GPUs: set cluster.workers={len(devices)}."
        )


def launch(settings: Settings, folder: Path, numbers: Sequence[int]) -> list[str]:
    """Start workers.

    Args:
        settings: of the run.
        folder: holds settings.json, and takes the logs.
        numbers: of the workers, one each.

    Returns:
        Their process ids.
    """
    devices = _devices(settings)
    threads = str(max(1, (os.cpu_count() or 1) // len(numbers)))
    processes = []
    for place, number in enumerate(numbers):
        environment = {"OMP_NUM_THREADS": threads} | os.environ
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[place]
        command = [sys.executable, "-m", "pipelines.worker", str(folder / "settings.json"), str(number)]
        with _log(folder, number).open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        processes.append(str(process.pid))
    return processes


def alive(ids: Sequence[str]) -> dict[str, str]:
    """Those of the processes that run, and how they stand."""
    return {process: "running" for process in ids if _runs(int(process))}


def why(folder: Path, number: int, process: str) -> str | None:
    """Why a process that is gone failed; None if it did not."""
    return reason(_log(folder, number).read_text(errors="replace").splitlines())


def cancel(ids: Sequence[str]) -> None:
    """Ask the processes to stop, which puts their trials back."""
    for process in alive(ids):
        os.kill(int(process), signal.SIGTERM)


def _log(folder: Path, number: int) -> Path:
    return folder / f"worker-{number}.log"


def _devices(settings: Settings) -> list[str]:
    if settings.model.device == "cpu" or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(device) for device in range(torch.cuda.device_count())]


def _runs(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG) == (0, 0)
    except ChildProcessError:  # not of this process: watched from another
        return Path(f"/proc/{process}").exists()
