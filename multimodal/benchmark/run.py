"""A run over several shapes: what the command line asks for."""

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedModel

from multimodal.benchmark.device import measure_peaks
from multimodal.benchmark.inputs import random_inputs
from multimodal.benchmark.measure import Subject, describe, measure_case
from multimodal.benchmark.models import Shape, in_words, random_model, read_size
from multimodal.benchmark.report import Case, Report
from multimodal.benchmark.sweep import Sweep
from multimodal.benchmark.sweeping import Axes, measure_sweep
from multimodal.benchmark.timing import Effort
from multimodal.benchmark.variants import COMPILED, at_retention, released_config
from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import Modules, modules_of
from multimodal.loading import chosen_device
from multimodal.runtime.fitting import check_fits

PUBLISHED = ("llava_onevision_7b@1152x1152", "llava_next_7b@672x672", "llava_1_5_7b", "qwen2_5_vl_7b@1008x1008")
LEAST_SECONDS = 20  # for a shape's first batch, whatever time is left
COMPILED_ONCE = "left out: it is compiled anew for every batch, and the time is limited"


class Arguments(BaseModel):
    """What is measured. A table that is kept holds them, so that it can be made again.

    Args:
        shapes: ``MODEL`` or ``MODEL@HEIGHTxWIDTH`` each.
        retention: of the pruned variants.
        config: a pruning.json instead of VFlowOpt at its released values.
        batches: prompts that are read together.
        text_tokens: of a prompt.
        new_tokens: that decoding is timed over.
        repeats: times that each first token is measured.
        minutes: to stop repeating after; null: none.
        small: few and narrow layers.
        device, dtype, attention: of the models; the dtype is bfloat16 on a GPU and float32 elsewhere if it is auto.
        sweep: also measure where pruning pays, over sizes, batches and retentions.
        sizes: of the sweep's images, ``HEIGHTxWIDTH`` or the side of a square.
        retentions: of the sweep.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shapes: list[str] = Field(default=list(PUBLISHED), min_length=1)
    retention: float = Field(default=0.1, gt=0, le=1)
    config: str | None = None
    batches: list[int] = Field(default=[1, 4, 16], min_length=1)
    text_tokens: int = Field(default=64, ge=2)
    new_tokens: int = Field(default=16, ge=1)
    repeats: int = Field(default=7, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    small: bool = False
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    sweep: bool = False
    sizes: list[str] = Field(default=["336", "672", "1008"], min_length=1)
    retentions: list[float] = Field(default=[0.5, 0.25, 0.1], min_length=1)

    @model_validator(mode="after")
    def _swept_alone(self) -> "Arguments":
        if self.sweep and len(self.shapes) > 1:
            raise FlowpruneError("A sweep is of one model: name one, such as llava_next_7b.")
        if min(self.batches) < 1:
            raise FlowpruneError("A batch holds one prompt at least: change the batches.")
        return self


def run(arguments: Arguments, say: Callable[[str], None], keep: Callable[[Report], object] | None = None) -> Report:
    """Measure all shapes, one after another.

    Args:
        arguments: what is measured.
        say: told what is measured next.
        keep: given what there is so far after each case, should a later one end the process.

    Raises:
        FlowpruneError: a shape, config, device, dtype or size is none, before anything is measured.
    """
    shapes = [Shape.read(text) for text in arguments.shapes]
    session = _Session(arguments, say, keep or (lambda report: None))
    for number, shape in enumerate(shapes):
        session.measure(shape, len(shapes) - number)
        _let_go()
    if session.report is None:
        raise FlowpruneError(f"Nothing was measured: {session.left_out[0]}")
    return session.report.model_copy(update={"left_out": session.left_out})


class _Session:
    """What is known while shapes are measured, and what was found so far."""

    def __init__(self, arguments: Arguments, say: Callable[[str], None], keep: Callable[[Report], object]) -> None:
        self._arguments, self._say, self._keep = arguments, say, keep
        self._sizes = [read_size(size) for size in arguments.sizes]
        self._config = None if arguments.config is None else PruningConfig.from_pretrained(arguments.config)
        self._began, device = time.monotonic(), chosen_device(arguments.device)
        self._dtype = _dtype(arguments.dtype, device)
        self._peaks = measure_peaks(device, self._dtype)
        self.report: Report | None = None
        self.left_out: list[str] = []

    def measure(self, shape: Shape, left: int) -> None:
        """Measure a shape, the first of those that are left."""
        asked = self._arguments
        self._say(f"{shape}: building it")
        try:
            model = random_model(shape.architecture, asked.device, self._dtype, asked.attention, asked.small)
        except torch.OutOfMemoryError:
            self.left_out.append(f"{shape} does not fit into the device's memory.")
            return
        modules = modules_of(model)
        layers = modules.geometry.text_layers
        config = released_config(layers, asked.retention) if self._config is None else self._config
        check_fits(modules, config)
        config_at = partial(at_retention, config, layers)
        for retention in asked.retentions if asked.sweep else ():
            config_at(retention)
        prompts = partial(_prompts, modules, shape.size, asked.text_tokens)
        subject = Subject(shape.name, modules, config, in_words(shape.size), prompts)
        for turn, batch in enumerate(asked.batches):
            self._say(f"{shape}, batch {batch}")
            effort = self._effort(left * len(asked.batches) - turn + asked.sweep, 0 if turn else LEAST_SECONDS)
            skipped = {COMPILED: COMPILED_ONCE} if asked.minutes and turn else {}
            self._add(model, case=measure_case(subject, batch, effort, self._peaks, skipped))
        if asked.sweep:
            self._say(f"{shape}: sweep")
            axes = Axes(self._sizes, asked.batches, asked.retentions, asked.text_tokens)
            self._add(model, sweep=measure_sweep(shape.name, modules, axes, config_at, self._effort(1)))

    def _add(self, model: PreTrainedModel, case: Case | None = None, sweep: Sweep | None = None) -> None:
        before = self.report or describe(model, self._peaks)
        cases = before.cases if case is None else [*before.cases, case]
        arguments = self._arguments.model_dump(mode="json")
        found = {"arguments": arguments, "cases": cases, "sweep": sweep}
        self.report = before.model_copy(update=found)
        self._keep(self.report)

    def _effort(self, left: int, least: float = 0) -> Effort:
        """An equal part of the time that is left, for each of so many measurements, but so many seconds at least."""
        asked, now = self._arguments, time.monotonic()
        if asked.minutes is None:
            return Effort(asked.repeats, asked.new_tokens)
        over = self._began + 60 * asked.minutes - now
        return Effort(asked.repeats, asked.new_tokens, now + max(over / left, least))


def _prompts(modules: Modules, size: tuple[int, int] | None, text_tokens: int, batch: int) -> Sequence[Any]:
    torch.manual_seed(0)
    return [random_inputs(modules, size, batch, text_tokens)]


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if not isinstance(found := getattr(torch, name, None), torch.dtype):
        raise FlowpruneError(f"The dtype {name!r} is none of torch: give auto, float32, bfloat16 or float16.")
    return found


def _let_go() -> None:
    """Free the memory of a model that nothing refers to any more."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
