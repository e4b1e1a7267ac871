"""One case: a model and a batch, every variant of it in turn, then what each is made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from multimodal.benchmark.bounds import Bounds
from multimodal.benchmark.device import Peaks, device_kind, device_name, peak_bytes
from multimodal.benchmark.inputs import Inputs, planned
from multimodal.benchmark.parts import REST, Timeline, shares, told_parts
from multimodal.benchmark.profiling import Ranges, profiled
from multimodal.benchmark.report import Case, Report, Row
from multimodal.benchmark.timing import Effort, Timed, generated, time_variants, why
from multimodal.benchmark.variants import COMPILED, Variant, variants
from multimodal.config import PruningConfig
from multimodal.families import Modules

TIMELINES, PROFILED_TOKENS = 3, 2
OVER = "left out: the time was over"


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        name: of the model.
        modules: of it.
        config: how it is pruned.
        image: size of the images, in words.
        prompts: that a batch of so many is measured on; each is a batch.
    """

    name: str
    modules: Modules
    config: PruningConfig
    image: str
    prompts: Callable[[int], Sequence[Inputs]]

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.modules.model


def describe(model: PreTrainedModel, peaks: Peaks) -> Report:
    """A report that holds nothing yet but where it was made."""
    return Report(
        device=device_name(model.device),
        kind=device_kind(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        torch=torch.__version__,
        transformers=transformers.__version__,
        peaks=peaks,
    )


def measure_case(subject: Subject, batch: int, effort: Effort, peaks: Peaks, skipped: Mapping[str, str]) -> Case:
    """Measure every variant on a batch.

    Args:
        subject: what is measured.
        batch: how many prompts are read together.
        effort: how thoroughly.
        peaks: of the device.
        skipped: variants that are left out, and why.
    """
    prompts = subject.prompts(batch)
    plans = [planned(subject.modules, inputs, subject.config.schedule) for inputs in prompts]
    plan_rows = [row for plan in plans for row in plan.rows]
    ways = variants(subject.model, subject.config)
    skipped = dict.fromkeys([way.name for way in ways], OVER) if effort.over else skipped
    chosen = [way for way in ways if way.name not in skipped]
    timed = time_variants(subject.model, prompts, chosen, effort)
    bounds = Bounds(subject.modules, prompts, peaks)
    rows = []
    for way in ways:
        held, note = way.recordings, way.note
        reason = skipped.get(way.name) or timed[way.name].failed
        if held is not None:
            reason, note = reason or (None if len(held) else held.note), held.note
        if reason is not None:
            rows.append(Row(variant=way.name, failed=reason))
            continue
        row = Row(variant=way.name, note=note, first_token=timed[way.name].first, decoding=timed[way.name].token)
        try:
            row = row.model_copy(update=bounds.of(way) | _inside(subject, prompts, way, timed[way.name], effort))
        except Exception as error:  # the times are there
            row = row.model_copy(update={"note": f"its parts could not be told: {why(error)}"})
        rows.append(row)
    vars(subject.model).pop("_compiled_call", None)  # which transformers leaves on a model
    return Case(
        model=subject.name,
        image=subject.image,
        batch=batch,
        visual_tokens=mean(row.visual_tokens for row in plan_rows),
        text_tokens=mean(row.text_tokens for row in plan_rows),
        retention=mean(row.retention for row in plan_rows),
        rows=rows,
    )


def _inside(subject: Subject, prompts: Sequence[Inputs], way: Variant, timed: Timed, effort: Effort) -> dict[str, Any]:
    """What a variant's calls are made of, means over the prompts."""
    modules, model, device = subject.modules, subject.model, subject.model.device
    call, timelines, ranges = generated(model, prompts, way, 1), [], Ranges()

    def in_parts() -> None:
        ranges.begin(REST)
        call()
        ranges.stop()

    for _ in range(1 if effort.over else TIMELINES):
        timeline = Timeline(device)
        with told_parts(modules, way, timeline.begin):
            timeline.begin(REST)
            call()
            timelines.append(timeline.stop())
    with told_parts(modules, way, ranges.begin):
        host = profiled(device, in_parts).per(len(prompts))
    with way.opened():
        peak, busy = peak_bytes(device, call), None
        if host.busy is not None and way.name != COMPILED:  # which is compiled anew for another length
            longer = profiled(device, generated(model, prompts, way, 1 + PROFILED_TOKENS)).per(len(prompts))
            busy = None if longer.busy is None else (longer.busy - host.busy) / PROFILED_TOKENS
    parts = {part: share * timed.first for part, share in shares(timelines).items()}
    found = {"parts": parts, "first_token_host": host, "decoding_busy": busy, "peak_bytes": peak}
    return found | {"recorded_bytes": None if way.recordings is None else way.recordings.bytes}
