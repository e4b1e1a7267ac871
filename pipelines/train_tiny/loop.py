"""One training loop for every stage: optimiser, schedule, checkpoints and progress. Knows nothing about the losses."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from torch import nn

log = logging.getLogger(__name__)

LOG_FILE = "log.txt"
Losses = dict[str, torch.Tensor]


def run_stage(
    name: str, module: nn.Module, losses_at: Callable[[int], Losses], options: DictConfig, folder: Path
) -> None:
    """Train ``module`` until ``options.steps``, going on from the stage's checkpoint where there is one.

    Args:
        name: names the checkpoint file and the log lines.
        module: what is trained and saved; parameters that need no gradient are saved too.
        losses_at: the losses of a step by name; the one called ``loss`` is minimised, the others are only reported.
        options: ``steps``, ``lr``, ``warmup``, ``decay``, ``tower_lr_scale``, ``log_every`` and ``save_every``.
        folder: where checkpoints go.
    """
    checkpoint = folder / f"{name}.pt"
    optimiser = torch.optim.AdamW(_groups(module, options), betas=(0.9, 0.98), weight_decay=0.01)
    first = _resume(checkpoint, module, optimiser)
    started = time.perf_counter()
    sums: dict[str, float] = {}
    with Progress(console=Console(stderr=True), disable=not Console(stderr=True).is_terminal) as progress:
        bar = progress.add_task(name, total=options.steps, completed=first)
        for step in range(first, options.steps):
            losses = losses_at(step)
            _descend(losses["loss"], optimiser, _lr_factor(step, options))
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.detach().item()
            done = step + 1
            progress.update(bar, completed=done)
            if done % options.log_every == 0:
                means = "  ".join(f"{key} {value / options.log_every:.4f}" for key, value in sums.items())
                seconds = time.perf_counter() - started
                _report(folder, f"{name} {done}/{options.steps}  {means}  ({seconds:.0f} s)")
                sums.clear()
            if done % options.save_every == 0 or done == options.steps:
                _save(checkpoint, done, module, optimiser)


def mixed_precision(device: torch.device) -> torch.autocast:
    """Bfloat16 on a GPU; float32 on a CPU, where only a few are faster in bfloat16 and many are much slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _report(folder: Path, line: str) -> None:
    """To the log and to the file that the model's card quotes."""
    log.info(line)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG_FILE).open("a") as file:
        file.write(line + "\n")


def _groups(module: nn.Module, options: DictConfig) -> Iterable[dict]:
    """Trainable parameters, those of the tower with their own share of the learning rate."""
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    tower = [p for name, p in named if "vision_tower" in name]
    rest = [p for name, p in named if "vision_tower" not in name]
    return [
        {"params": rest, "peak": options.lr},
        {"params": tower, "peak": options.lr * options.tower_lr_scale},
    ]


def _descend(loss: torch.Tensor, optimiser: torch.optim.Optimizer, factor: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * factor
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    optimiser.step()


def _lr_factor(step: int, options: DictConfig) -> float:
    """Linear warm-up, constant, linear decay over the last ``decay`` steps."""
    return min(1.0, (step + 1) / options.warmup, (options.steps - step) / options.decay)


def _save(checkpoint: Path, step: int, module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write beside and rename, so that a killed run never leaves half a file."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save({"step": step, "module": module.state_dict(), "optimiser": optimiser.state_dict()}, partial)
    partial.replace(checkpoint)


def _resume(checkpoint: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load the checkpoint where there is one; the number of steps already done."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    log.info("%s resumes after step %d", checkpoint.stem, state["step"])
    return state["step"]
