"""The search space of the settings."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from torch import Tensor

from multimodal import FlowpruneError
from multimodal.adaptive import reference_of
from multimodal.costs import Workload
from multimodal.families import Geometry
from multimodal.methods import method_named
from multimodal.runtime.watch import Normalization
from pipelines.console import console
from pipelines.prompts import shown_layouts
from pipelines.restriction import served_method
from pipelines.settings import Settings
from search.budget import BudgetUnreachableError, Cost, share_of
from search.choice import MethodChoice
from search.latency import Latency
from search.space import Space


def method_choices(settings: Settings) -> list[MethodChoice]:
    """The methods that a search chooses among: one, or those of ``method=mixed``.

    Raises:
        FlowpruneError: an unknown method or merging rule, rules that do not fit, or a method that the engine which is
            to serve the config cannot take.
    """
    method, mergings, sinks = served_method(settings), settings.search.merging, settings.search.sinks
    weighted = settings.serving.engine is None
    if not method.among:
        return [MethodChoice(method.name, method.fixed, method.ranges, mergings, sinks, weighted)]
    return [
        MethodChoice(name, method.fixed.get(name, {}), method.ranges.get(name, {}), mergings, sinks, weighted)
        for name in method.among
    ]


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
        latency: see :func:`pipelines.latency.study_latency`; needed by a budget in milliseconds.

    Raises:
        FlowpruneError: the budget cannot be met, or the positions do not fit the model.
    """
    served = [choice for choice in settings.search.positions if choice in settings.serving.positions]
    if not served:
        raise FlowpruneError(
            f"search.positions {settings.search.positions} are none that serving={settings.serving.engine} gives: add "
            f"{settings.serving.positions[0]} to them."
        )
    positions = [choice for choice in served if choice in geometry.positions]
    if not positions:
        raise FlowpruneError(
            f"search.positions {served} do not fit a model of several rotary axes: add original to them."
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
        steps=settings.steps,
        layers=workload.layers,
        positions=positions,
        normalization=normalization,
        shape=settings.search.schedule if settings.serving.engine is None else "steps",
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


def with_equal_shares(settings: Settings) -> Settings:
    """The same without budgets that adapt to what an image shows."""
    return settings.model_copy(update={"search": settings.search.model_copy(update={"adaptive": False})})


def most_steps(geometry: Geometry, method: str) -> int:
    """How many pruning steps a method can take in a model: one a layer that it allows, and one before them."""
    first_layer = method_named(method).first_layer
    return geometry.text_config.num_hidden_layers - _first_inner_layer(geometry, method) + (first_layer == 0)


def _first_inner_layer(geometry: Geometry, method: str) -> int:
    return max(1, geometry.deepstack_layers, method_named(method).first_layer)


def prompts_of(geometry: Geometry, inputs: Iterable[Mapping[str, Tensor]]) -> Workload:
    """What prompts cost, from a processor's output for each alone."""
    prompts = []
    for each in inputs:
        layouts = shown_layouts(geometry, each)
        prompts.append((layouts, each["input_ids"].shape[1] - sum(layout.visual_tokens for layout in layouts)))
    return Workload(geometry.text_config, prompts)
