"""Latency: milliseconds that a schedule's prefill takes on one device, from one measurement of that device.

A layer's time depends on how many tokens it sees, and layers of a model are alike: a schedule's time is the sum of its
layers' shares of unpruned prefills of as many tokens, plus what pruning itself takes. Single timings are noisy, so
the model is fitted once, and the same model counts for every trial and worker of a study.
"""

from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from multimodal import PruningConfig, PruningStep, prune
from multimodal.benchmark.device import device_name
from multimodal.benchmark.stopwatch import Stopwatch
from multimodal.costs import Workload
from multimodal.families import Modules
from search.budget import LEAST
from search.calibration import CalibrationSample
from search.objective import Objective

LENGTHS, PROMPTS, REPEATS = 12, 4, 7


class Latency(BaseModel):
    """A device's latency model.

    Args:
        device: its name.
        tokens: prompt lengths, increasing.
        milliseconds: of an unpruned prefill of each length, one prompt at a time; never falls.
        pruning: milliseconds that pruning itself takes: map, selection, recycling, gathering.
        error: median relative error of predictions for pruned prefills that were measured too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    tokens: tuple[int, ...]
    milliseconds: tuple[float, ...]
    pruning: float
    error: float

    def predict(self, workload: Workload, schedule: Sequence[PruningStep]) -> float:
        """Milliseconds of the language model's prefill of one prompt, mean over a workload's."""
        by_layer = np.interp(workload.tokens_by_layer(schedule), self.tokens, self.milliseconds) / workload.layers
        return float(by_layer.sum(0) @ workload.numbers / workload.numbers.sum()) + self.pruning


@torch.inference_mode()
def measure_latency(
    modules: Modules, samples: Sequence[CalibrationSample], probes: Sequence[PruningConfig], workload: Workload
) -> Latency:
    """Time unpruned prefills of several lengths and pruned ones of a few prompts, interleaved.

    Args:
        modules: of the model.
        samples: calibration samples, a few of which are timed.
        probes: configs such as trials will have.
        workload: the prompts whose lengths count.
    """
    device = modules.text_model.device
    shortest = workload.tokens_by_layer([PruningStep(layer=0, keep_ratio=LEAST)]).min()
    longest = workload.tokens_by_layer(()).max()
    lengths = np.unique(np.geomspace(shortest, longest, LENGTHS).round().astype(int)).tolist()
    objective = Objective(modules, samples[:PROMPTS], batch_size=1, seed=0)
    embeds = torch.zeros(1, int(longest), samples[0].embeds.shape[-1], dtype=modules.model.dtype, device=device)
    batches = [batch.to(device) for batch in objective.batches]
    watch = Stopwatch(device)

    def unpruned(length: int) -> None:
        mask = torch.ones(1, length, dtype=torch.long, device=device)
        modules.text_model(inputs_embeds=embeds[:, :length], attention_mask=mask, use_cache=False)

    for _ in range(1 + REPEATS):
        for length in lengths:
            watch.time(f"{length}", partial(unpruned, length))
        for number, probe in enumerate(probes):
            with prune(modules.model, probe) as pruner:
                for batch, prompt in enumerate(batches):
                    watch.time(f"{number} {batch}", partial(objective.prefill, prompt, pruner))
    seconds = watch.medians()
    times = np.maximum.accumulate([seconds[f"{length}"] * 1000 for length in lengths]).tolist()
    unfitted = Latency(device=device_name(device), tokens=lengths, milliseconds=times, pruning=0, error=0)
    pairs = [
        (1000 * seconds[f"{number} {batch}"], unfitted.predict(each, probe.schedule))
        for number, probe in enumerate(probes)
        for batch, each in enumerate(_each_prompt(modules, objective))
    ]
    pruning = max(0.0, median(measured - layers for measured, layers in pairs))
    error = median(abs(layers + pruning - measured) / measured for measured, layers in pairs)
    return unfitted.model_copy(update={"pruning": pruning, "error": error})


def _each_prompt(modules: Modules, objective: Objective) -> list[Workload]:
    """The workload of each batch of one."""
    return [
        Workload(
            modules.text_model.config,
            [
                (
                    [image.layout for image in batch.prompt.images],
                    batch.embeds.shape[1] - int(batch.prompt.is_visual.sum()),
                )
            ],
        )
        for batch in objective.batches
    ]
