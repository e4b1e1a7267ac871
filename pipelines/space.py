"""The search space of the settings, and the latency model of a study whose budget is in milliseconds."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import optuna
import torch
from torch import Tensor

from multimodal import FlowpruneError
from multimodal.adaptive import reference_of
from multimodal.costs import Workload
from multimodal.families import Geometry
from multimodal.methods import method_named
from multimodal.runtime.watch import Normalization
from pipelines.choices import method_choices
from pipelines.console import console
from pipelines.model import OpenedModel
from pipelines.settings import BudgetSettings, Settings
from pipelines.stages.calibrate import Calibration
from pipelines.storage import known_study
from search.budget import BudgetUnreachableError, Cost, share_of
from search.choice import MethodChoice
from search.latency import Latency, device_name, measure_latency
from search.space import Space
from search.study import digest

PROBES = BudgetSettings(name="probes", retention=[0.3, 0.5, 0.7])  # what pruned prefills are timed at
PROBED = 6


def make_space(
    settings: Settings,
    geometry: Geometry,
    workload: Workload,
    normalization: Normalization,
    latency: Latency | None = None,
) -> Space:
    """The search space of the settings.

    Args:
        settings: method, budget and schedule.
        geometry: of the model.
        workload: the prompts that meet the budget together.
        normalization: mean and standard deviation of the image processor.
        latency: see :func:`study_latency`; needed by a budget in milliseconds.

    Raises:
        FlowpruneError: the budget cannot be met, or the positions do not fit the model.
    """
    positions = [choice for choice in settings.search.positions if choice in geometry.positions]
    if not positions:
        raise FlowpruneError(
            f"search.positions {settings.search.positions} do not fit a model of several rotary axes: "
            "add original to them."
        )
    measure = settings.budget.measure
    if measure == "latency_ms" and latency is None:
        raise FlowpruneError("budget.latency_ms needs a search first: run stages=[search], or choose another budget.")
    seen = [each for images in workload.varieties for each in images] if settings.search.adaptive else []

    def cost_of(own: Workload) -> Cost:
        return share_of(own, measure) if latency is None else partial(latency.predict, own)

    make = partial(
        Space,
        measure=measure,
        budgets=settings.budget.budgets,
        cost=cost_of(workload),
        steps=settings.search.steps,
        layers=workload.layers,
        positions=positions,
        normalization=normalization,
        shape=settings.search.schedule,
        first_inner_layer=max(1, geometry.deepstack_layers),
        adapted=(lambda adaptive: cost_of(workload.adapted(adaptive))) if seen else None,
        reference=reference_of(seen) if seen else 1.0,
    )
    choices = method_choices(settings)
    return make(choices) if len(choices) == 1 else make(_within_budget(choices, make))


def _within_budget(
    choices: Sequence[MethodChoice], make: Callable[[Sequence[MethodChoice]], Space]
) -> list[MethodChoice]:
    """Of several methods, those that can meet the budget; the others are named.

    Raises:
        FlowpruneError: none can.
    """
    found, why = [], ""
    for choice in choices:
        try:
            make([choice])
            found.append(choice)
        except BudgetUnreachableError as error:
            why = str(error)
            console.print(f"[yellow]left out of the mixture: {choice.name}: {why}[/]", highlight=False)
    if not found:
        raise FlowpruneError(f"No method of the mixture can meet the budget: {why}")
    return found


def most_steps(geometry: Geometry, method: str) -> int:
    """How many pruning steps a method can take in a model: one a layer that it allows, and one before them."""
    first_layer = method_named(method).first_layer
    return geometry.text_config.num_hidden_layers - _first_inner_layer(geometry, method) + (first_layer == 0)


def _first_inner_layer(geometry: Geometry, method: str) -> int:
    return max(1, geometry.deepstack_layers, method_named(method).first_layer)


def prompts_of(geometry: Geometry, inputs: Sequence[Mapping[str, Tensor]]) -> Workload:
    """What prompts cost, from a processor's output for each alone."""
    prompts = []
    for each in inputs:
        layouts = geometry.layouts(each)
        prompts.append((layouts, each["input_ids"].shape[1] - sum(layout.visual_tokens for layout in layouts)))
    return Workload(geometry.text_config, prompts)


def study_latency(
    settings: Settings, opened: OpenedModel, calibration: Calibration, workload: Workload
) -> Latency | None:
    """The study's latency model; before there is a study, the one in the cache, which the first worker measures.

    Args:
        settings: of the run.
        opened: the model, on the worker's device.
        calibration: samples to measure on, and the cache.
        workload: their prompts.

    Returns:
        None with a budget in another measure.

    Raises:
        FlowpruneError: a method prunes inside the tower, whose time is not the language model's.
    """
    if settings.budget.measure != "latency_ms":
        return None
    for choice in method_choices(settings):
        if choice.prunes_tower:
            raise FlowpruneError(
                f"budget.latency_ms counts the language model's prefill alone, and {choice.name} prunes inside the "
                "tower: set budget to retention, flops or kv."
            )
    study = known_study(settings)
    known = None if study is None else study.user_attrs.get("settings", {}).get("latency")
    return Latency(**known) if known else _cached(settings, opened, calibration, workload)


def check_device(study: optuna.Study, device: torch.device) -> None:
    """Refuse to count milliseconds of another device.

    Raises:
        FlowpruneError: the study's latency model was measured elsewhere.
    """
    known, here = study.user_attrs["settings"].get("latency"), device_name(device)
    if known is not None and known["device"] != here:
        raise FlowpruneError(
            f"Study {study.study_name!r} counts milliseconds on {known['device']}, and this is {here}: run it there, "
            "or choose another study=NAME."
        )


def _cached(settings: Settings, opened: OpenedModel, calibration: Calibration, workload: Workload) -> Latency:
    """Measured by one worker: where several do it at once, the first to finish is the one that all read."""
    device = device_name(opened.modules.text_model.device)
    key = digest({"device": device, "method": settings.method.name, "steps": settings.search.steps})
    path = calibration.folder / f"latency-{key}.json"
    if not path.exists():
        probing = settings.model_copy(update={"budget": PROBES})
        space = make_space(probing, opened.modules.geometry, workload, opened.normalization)
        trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=settings.seed))
        probes = [space.suggest(trials.ask()) for _ in range(PROBED)]
        measured = measure_latency(opened.modules, calibration.samples, probes, workload)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(measured.model_dump_json(indent=2), encoding="utf-8")
        try:
            os.link(own, path)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    found = Latency.model_validate_json(path.read_text(encoding="utf-8"))
    console.print(
        f"one prompt's prefill on {found.device}: {found.milliseconds[-1]:.4g} ms unpruned, predictions for pruned "
        f"ones are off by {found.error:.0%} (median)"
    )
    return found
