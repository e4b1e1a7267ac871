"""What a search trial costs a sample: ours on cached features, and the released way from pixels."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from multimodal import prune
from multimodal.benchmark.inputs import Inputs
from multimodal.benchmark.stopwatch import Stopwatch
from multimodal.families import Modules
from pipelines.measured import Measured
from search.objective import Objective
from search.room import BatchSize


@dataclass(frozen=True)
class TrialTime:
    """Seconds a sample.

    Args:
        ours: of an evaluation of the objective.
        prefill: of the pruned prefills in it.
        released: of two ``generate()`` from pixels, unpruned and pruned.
    """

    ours: float
    prefill: float
    released: float


@torch.inference_mode()
def measure_trial(measured: Measured, batch_size: BatchSize, seed: int, repeats: int) -> TrialTime:
    """Time both ways in turn: medians.

    Args:
        measured: the model, config and samples.
        batch_size: of the objective.
        seed: of its order.
        repeats: times that each is measured.
    """
    subject, config = measured.subject, measured.subject.config
    modules, model = subject.modules, subject.model
    objective = Objective(modules, measured.calibration, batch_size, seed)
    watch, inside = Stopwatch(model.device), list[float]()

    def prefill_alone() -> None:
        """The trial again, timing the decoder alone: from after the first step's selection to its end."""
        inside.append(0.0)
        with prune(model, config) as pruner:
            clock = _DecoderClock(modules)
            for batch in (each.to(model.device) for each in objective.batches):
                objective.last_states(batch, pruner, config.method.tower is not None)
            inside[-1] = clock.stop()

    def released() -> None:
        for inputs in measured.alone:
            _first_token(model, inputs)
            with prune(model, config):
                _first_token(model, inputs)

    for _ in range(1 + repeats):
        watch.time("ours", lambda: objective.evaluate(config))
        watch.time("released", released)
        prefill_alone()
    seconds, samples = watch.medians(), len(measured.calibration)
    return TrialTime(seconds["ours"] / samples, median(inside[1:]) / samples, seconds["released"] / len(measured.alone))


class _DecoderClock:
    """Adds up the time inside a text model, from after the pruner's hook to the end of the forward pass."""

    def __init__(self, modules: Modules) -> None:
        self._device = modules.text_model.device
        self._seconds = 0.0
        self._began = 0.0
        self._hooks = [
            modules.text_model.register_forward_pre_hook(self._start),
            modules.text_model.register_forward_hook(self._end),
        ]

    def stop(self) -> float:
        """Take the hooks off; returns the seconds."""
        for hook in self._hooks:
            hook.remove()
        return self._seconds

    def _start(self, *_: Any) -> None:
        self._began = self._now()

    def _end(self, *_: Any) -> None:
        self._seconds += self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _first_token(model: Any, inputs: Inputs) -> None:
    model.generate(**inputs, max_new_tokens=1, do_sample=False, output_hidden_states=True, return_dict_in_generate=True)
