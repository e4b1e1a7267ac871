"""Stage benchmark: what pruning costs and saves on this machine, as ratios inside one run."""

import inspect
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from rich.box import SIMPLE_HEAVY
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.costs import estimate
from multimodal.evidence import token_evidence
from multimodal.families import Modules, modules_of
from multimodal.runtime import Pruner
from multimodal.runtime.calls import PIXELS
from multimodal.runtime.prefill import Prefill
from multimodal.runtime.watch import Normalization
from pipelines.baselines import untuned_config
from pipelines.calibration import observed
from pipelines.console import console
from pipelines.model import build_random
from pipelines.prompts import build_inputs
from pipelines.report_metrics import benchmarked
from pipelines.restriction import served_method
from pipelines.settings import Settings
from pipelines.space import make_space, prompts_of
from pipelines.tracking import log_with_study
from pipelines.workspace import Workspace
from search.calibration import CalibrationSample, observe_sample
from search.objective import Objective
from multimodal.benchmark.stopwatch import Stopwatch

HALF: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class _Subject:
    """What is measured: a model, inputs of a few samples, what a trial looks at, and a config."""

    model: PreTrainedModel
    modules: Modules
    inputs: list[dict[str, Tensor]]
    samples: list[CalibrationSample]
    calibration: list[CalibrationSample]
    config: PruningConfig


def run(workspace: Workspace) -> dict[str, Any]:
    """Measure, print and write ``benchmark.json``; returns what it holds.

    Raises:
        FlowpruneError: the config does not fit the model.
    """
    subject = _subject(workspace)
    with torch.inference_mode():
        parts = _measure_model(subject, workspace.settings.benchmark.repeats)
        report: dict[str, Any] = {**parts, "trial": _measure_trial(subject, workspace.settings)}
    _print(report, subject, workspace.settings.model.name)
    path = workspace.benchmark
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"report: {path}")
    if workspace.tuned.exists() and workspace.settings.benchmark.config is None:
        log_with_study(workspace, benchmarked(report))
    return report


def _subject(workspace: Workspace) -> _Subject:
    settings = workspace.settings
    if settings.model.weights == "random":
        model, normalization = build_random(settings.model), HALF
        modules = modules_of(model)
        torch.manual_seed(settings.seed)
        inputs = [_random_inputs(modules, settings.benchmark.text_tokens) for _ in range(settings.benchmark.samples)]
    else:
        opened = workspace.model
        model, modules, normalization = opened.model, opened.modules, opened.normalization
        chosen = workspace.samples("heldout", settings.benchmark.samples)
        inputs = [dict(build_inputs(opened, [sample])) for sample in chosen]
    config = _config(workspace, modules, inputs, normalization)
    if config.method.tower is not None:
        raise FlowpruneError(
            f"The benchmark times tower and language model apart, and {config.method.name} prunes inside the tower: "
            "run stages=[compare], which times the first token as a whole."
        )
    requests = config.vision_requests
    samples = [observe_sample(modules, each, requests, normalization) for each in inputs]
    calibration = samples
    if settings.model.weights == "pretrained":
        chosen = workspace.samples("calibration")
        calibration = observed(workspace, chosen, "calibration").samples
    return _Subject(model, modules, inputs, samples, calibration, config)


def _random_inputs(modules: Modules, text_tokens: int) -> dict[str, Tensor]:
    geometry, model = modules.geometry, modules.model
    pixels = geometry.random_image()
    visual = sum(layout.visual_tokens for layout in geometry.layouts(pixels))
    before, after = text_tokens // 2, text_tokens - text_tokens // 2
    ids = torch.randint(geometry.text_config.vocab_size, (1, before + visual + after))
    ids[ids == geometry.image_token_id] = 0
    ids[:, before : before + visual] = geometry.image_token_id
    inputs = pixels | geometry.token_inputs(ids) | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _config(
    workspace: Workspace, modules: Modules, inputs: list[dict[str, Tensor]], normalization: Normalization
) -> PruningConfig:
    if workspace.settings.benchmark.config is None and workspace.settings.model.weights == "pretrained":
        try:
            return workspace.config(None)
        except FlowpruneError:
            console.print("no tuned config of this study: measuring the untuned values")
    if workspace.settings.benchmark.config is not None:
        return workspace.config(workspace.settings.benchmark.config)
    space = make_space(workspace.settings, modules.geometry, prompts_of(modules.geometry, inputs), normalization)
    return untuned_config(served_method(workspace.settings), space)


def _measure_model(subject: _Subject, repeats: int) -> dict[str, float]:
    """Medians over samples, taken one at a time: seconds of each part, and peak bytes on a GPU."""
    parts = [_measure_prompt(subject, number, repeats) for number in range(len(subject.samples))]
    return {name: median(part[name] for part in parts) for name in parts[0]}


def _measure_prompt(subject: _Subject, number: int, repeats: int) -> dict[str, float]:
    modules, config, device = subject.modules, subject.config, subject.model.device
    geometry, text = modules.geometry, modules.text_model
    inputs = subject.inputs[number]
    encode = _encoder(modules, inputs)
    objective = Objective(modules, [subject.samples[number]], batch_size=1, seed=0)
    batch = objective.batches[0].to(device)
    peaks: dict[str, float] = {}
    requests = config.vision_requests
    layouts = [image.layout for image in batch.prompt.images]
    prompt = replace(batch.prompt, evidence=token_evidence(geometry, requests, layouts, batch.evidence))

    def select() -> None:
        reading = Prefill(geometry, text.config, config, prompt, None, device)
        reading.begin(batch.embeds, batch.text_inputs["position_ids"])

    def read(name: str, pruner: Pruner | None) -> None:
        """Time a prefill and one decoding step after it."""
        cache = DynamicCache(config=text.config)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        watch.time(f"{name} prefill", lambda: objective.prefill(batch, pruner, cache))
        if device.type == "cuda":
            peaks[f"{name} peak bytes"] = torch.cuda.max_memory_allocated(device)
        step = {"inputs_embeds": batch.embeds[:, -1:], "use_cache": True, modules.cache_name: cache}
        watch.time(f"{name} decoding step", lambda: text(**step))

    watch = Stopwatch(device)
    for _ in range(1 + repeats):
        watch.time("vision tower", encode)
        watch.time("selection", select)
        read("unpruned", None)
        with prune(subject.model, config) as pruner:
            watch.time("watched tower", encode)
            read("pruned", pruner)
    seconds = watch.medians()
    map_made = max(seconds.pop("watched tower") - seconds["vision tower"], 0.0)
    return seconds | {"map, selection, recycling": map_made + seconds.pop("selection")} | peaks


def _encoder(modules: Modules, inputs: Mapping[str, Tensor]) -> Callable[[], None]:
    """The vision tower's part of a prompt: its pictures, then its videos."""
    calls = []
    for modality, pixels in PIXELS.items():
        if pixels in inputs:
            encode = getattr(modules.base, f"get_{modality}_features")
            known = inspect.signature(encode).parameters
            own = {name: value for name, value in inputs.items() if name in known and name not in PIXELS.values()}
            own[pixels if pixels in known else PIXELS["image"]] = inputs[pixels]
            calls.append(partial(encode, **own))

    def run() -> None:
        for call in calls:
            call()

    return run


def _measure_trial(subject: _Subject, settings: Settings) -> dict[str, float]:
    """Seconds a sample of a search trial: ours on cached features, the released way from pixels."""
    modules, config, model = subject.modules, subject.config, subject.model
    objective = Objective(modules, subject.calibration, settings.search.batch_size, settings.seed)
    watch = Stopwatch(model.device)
    inside: list[float] = []

    def ours() -> None:
        objective.evaluate(config)

    def prefill_alone() -> None:
        """The trial again, timing the decoder alone: from after the first step's selection to its end."""
        inside.append(0.0)
        with prune(model, config) as pruner:
            clock = _DecoderClock(modules)
            for batch in (each.to(model.device) for each in objective.batches):
                objective.prefill(batch, pruner)
            inside[-1] = clock.stop()

    def released() -> None:
        for inputs in subject.inputs:
            _first_token(model, inputs)
            with prune(model, config):
                _first_token(model, inputs)

    for _ in range(1 + settings.benchmark.repeats):
        watch.time("ours", ours)
        watch.time("released way", released)
        prefill_alone()
    seconds = watch.medians()
    return {
        "ours": seconds["ours"] / len(subject.calibration),
        "pruned prefill": median(inside[1:]) / len(subject.calibration),
        "released way": seconds["released way"] / len(subject.inputs),
    }


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


def _first_token(model: Any, inputs: dict[str, Tensor]) -> None:
    model.generate(**inputs, max_new_tokens=1, do_sample=False, output_hidden_states=True, return_dict_in_generate=True)


def _print(report: dict[str, Any], subject: _Subject, name: str) -> None:
    costs = _costs(subject)
    speed = Table(title=f"{name}, one prompt at a time, {subject.model.device}", box=SIMPLE_HEAVY)
    for column in ("", "unpruned", "pruned", "measured", "bound"):
        speed.add_column(column, justify="left" if not column else "right")
    parts = (("prefill", costs["prefill_flops"]), ("decoding step", costs["decoding_flops"]))
    for part, (full, pruned) in parts:
        before, after = report[f"unpruned {part}"], report[f"pruned {part}"]
        speed.add_row(part, _ms(before), _ms(after), f"{before / after:.2f}×", f"{full / pruned:.2f}×")
    full, pruned = costs["kv_bytes"]
    speed.add_row("KV bytes", f"{full:,.0f}", f"{pruned:,.0f}", "", f"{full / pruned:.2f}×")
    if "unpruned peak bytes" in report:
        full, pruned = report["unpruned peak bytes"], report["pruned peak bytes"]
        speed.add_row("peak bytes", f"{full:,.0f}", f"{pruned:,.0f}", f"{full / pruned:.2f}×", "")
    tower, select = report["vision tower"], report["map, selection, recycling"]
    speed.add_row("vision tower", _ms(tower), _ms(tower), "", "")
    speed.add_row("map, selection, recycling", "", _ms(select), f"{select / tower:.1%} of tower", "")
    console.print(speed)
    trial = report["trial"]
    ours, released, prefill = trial["ours"], trial["released way"], trial["pruned prefill"]
    console.print(
        f"a search trial, per sample: {_ms(ours)}, of which {_ms(prefill)} are the pruned prefill "
        f"([bold]{ours / prefill - 1:.1%}[/] on top); the released way: {_ms(released)} "
        f"([bold]{released / ours:.1f}×[/] as much)"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _costs(subject: _Subject) -> dict[str, tuple[float, float]]:
    """Unpruned and pruned FLOPs and bytes, means over samples."""
    text, config = subject.modules.text_model.config, subject.config
    element = subject.model.dtype.itemsize
    pairs = []
    for sample in subject.samples:
        words = int((~sample.is_visual).sum())
        costs = [estimate(text, sample.layouts, words, applied, element) for applied in (None, config)]
        pairs.append([(c.prefill_flops, c.decoding_flops, c.kv_bytes) for c in costs])
    names = ("prefill_flops", "decoding_flops", "kv_bytes")
    return {name: (mean(p[0][i] for p in pairs), mean(p[1][i] for p in pairs)) for i, name in enumerate(names)}
