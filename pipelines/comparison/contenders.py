"""Who takes part in a comparison: methods at their published defaults and tuned, each at each budget."""

from importlib import resources
from pathlib import Path
from typing import Literal, cast

from omegaconf import OmegaConf

from multimodal import FlowpruneError
from multimodal.families import Geometry
from multimodal.methods import Method, method_named
from pipelines.settings import NO_ENGINE, BudgetSettings, MethodSettings, ServingSettings, Settings, Untuned
from pipelines.space import most_steps
from pipelines.workspace import Workspace

Variant = Literal["unpruned", "downscaled", "published", "tuned", "servable"]
UNPRUNED, DOWNSCALED, PUBLISHED, TUNED, SERVABLE = cast(
    tuple[Variant, ...], ("unpruned", "downscaled", "published", "tuned", "servable")
)  # servable: tuned within what the engine of conf/serving can do
NONE, DOWNSCALE, RANDOM = "none", "downscale", "random"
ALWAYS = (NONE, DOWNSCALE)  # what every comparison measures, whether it is named or not
SPECIAL = {"custom", "mixed", *ALWAYS}  # files that are no method of their own
_FILES = resources.files("conf") / "method"


def methods_of(settings: Settings) -> list[str]:
    """Names of what is compared, random tokens among them, which all must beat.

    Raises:
        FlowpruneError: one is not known.
    """
    asked = settings.compare.methods
    named = every_method() if asked == ["all"] else list(dict.fromkeys(asked))
    named = [name for name in named if name not in ALWAYS]
    for name in named:
        own = method_settings(settings, name)
        for method in own.among or [own.name]:
            method_named(method)
    found = named if RANDOM in named else [*named, RANDOM]
    tuned = settings.compare.tuned
    if isinstance(tuned, list) and (missing := [name for name in tuned if name not in found]):
        raise FlowpruneError(f"compare.tuned names {missing[0]}, which is not compared: add it to compare.methods.")
    return found


def every_method() -> list[str]:
    """All methods that are registered, and those of conf/method that are one of them with other parameters."""
    files = {Path(file.name).stem for file in _FILES.iterdir() if file.name.endswith(".yaml")}
    return sorted((set(Method.registry) | files) - SPECIAL)


def budgets_of(settings: Settings) -> list[float]:
    """The budgets, most first, in ``budget``'s measure.

    Raises:
        FlowpruneError: one is no share, or the measure is milliseconds, which differ from method to method.
    """
    measure, asked = settings.budget.measure, settings.compare.budgets
    if measure == "latency_ms":
        raise FlowpruneError("compare counts what each method spends: set budget to retention, flops or kv.")
    if asked is not None:
        for each in asked:
            if not 0 < each <= 1:
                raise FlowpruneError(
                    f"compare.budgets has {each:g}: give shares of the unpruned model's {measure}, in (0, 1]."
                )
    if asked == []:
        raise FlowpruneError("compare.budgets is empty: give some, such as [0.5,0.1], or null for the budget's.")
    return sorted(set(asked or settings.budget.budgets), reverse=True)


def method_settings(settings: Settings, name: str) -> MethodSettings:
    """A method's own settings: the run's where it is the run's method, else its YAML, else what fits any method.

    Args:
        settings: of the run.
        name: of the method, or of its YAML.
    """
    file = _FILES / f"{name}.yaml"
    if settings.method.name == name:
        return settings.method
    if not file.is_file():
        return MethodSettings(name=name, fixed={}, ranges={}, untuned=Untuned(parameters={}, places=[0.0], ratios=[]))
    found = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")), resolve=True)
    return MethodSettings.model_validate(found)


def at_budget(
    workspace: Workspace, geometry: Geometry, name: str, budget: float, serving: ServingSettings = NO_ENGINE
) -> Workspace:
    """The workspace of one method at one budget, as ``stages=[search]`` would have it, under a name of its own.

    Args:
        workspace: of the run.
        geometry: of the model, which bounds the pruning steps.
        name: of the method, or of its YAML.
        budget: in the run's measure.
        serving: the engine that bounds the search, if any.
    """
    settings = workspace.settings
    measure = settings.budget.measure
    short = f"{budget:g}" if measure == "retention" else f"{measure}-{budget:g}"
    method = method_settings(settings, name)
    steps = settings.search.steps
    if not method.among:
        steps = min(steps, most_steps(geometry, method.name))
    return workspace.but(
        method=method,
        budget=BudgetSettings.model_validate({"name": short, measure: budget}),
        search=settings.search.model_copy(update={"name": short, "pareto": False, "steps": steps}),
        serving=serving,
        study=f"{settings.compare.name}-{name}-{short}{serving.suffix}",
        output=str(workspace.comparison / "searches" / f"{name}-{short}{serving.suffix}"),
    )


def label(method: str, variant: str) -> str:
    """A contender in words."""
    if variant in (UNPRUNED, DOWNSCALED):
        return variant
    return method if variant == PUBLISHED else f"{method} {variant}"
