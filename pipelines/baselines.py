"""What a tuned config is compared with, at the same budget: the method's untuned values, uniform and random tokens."""

from collections.abc import Mapping
from pathlib import Path

from multimodal import FlowpruneError, PruningConfig
from multimodal.methods import make_method, method_named
from pipelines.settings import MethodSettings
from search.schedules import Schedules
from search.space import Space

UNPRUNED, TUNED, UNTUNED, UNIFORM, RANDOM = "unpruned", "tuned", "untuned", "uniform", "random"
UNRESTRICTED = "unrestricted"  # the same search for no engine in particular


def contenders(
    method: MethodSettings, space: Space, tuned: PruningConfig, unrestricted: Path | None = None
) -> Mapping[str, PruningConfig | None]:
    """Configs by name; None is the unpruned model.

    Args:
        method: what its paper uses.
        space: of the search, which knows the budget.
        tuned: what the search found.
        unrestricted: where the same search for no engine in particular has left its config, if it was run.
    """
    untuned = {} if method.untuned is None else {UNTUNED: untuned_config(method, space)}
    return {
        UNPRUNED: None,
        TUNED: tuned,
        **untuned,
        UNIFORM: _single_step("uniform", space),
        RANDOM: _single_step("random", space),
        **_unrestricted(unrestricted, tuned),
    }


def _unrestricted(path: Path | None, tuned: PruningConfig) -> dict[str, PruningConfig]:
    if path is None or not path.exists():
        return {}
    config = PruningConfig.from_pretrained(path)
    asked = {(each.budget.measure, each.budget.asked) for each in (config, tuned) if each.budget}
    return {UNRESTRICTED: config} if len(asked) == 1 else {}  # no rival at another budget


def untuned_config(method: MethodSettings, space: Space) -> PruningConfig:
    """The method as its paper uses it without a search, with the last ratio solved for the budget.

    Raises:
        FlowpruneError: there are several methods to choose among.
    """
    untuned, [budget] = method.untuned, space.budgets
    if untuned is None:
        raise FlowpruneError(f"method={method.name} has no untuned values: run stages=[search], or name one.")
    first = method_named(method.name).first_layer
    inner = max(space.first_inner_layer, first)
    schedules = Schedules(space.cost, len(untuned.places), space.layers, first > 0, inner)
    [single] = Schedules(space.cost, 1, space.layers).solved(budget, [0], [])
    ratios = [single.keep_ratio * untuned.ratios[0], *untuned.ratios[1:]] if untuned.ratios else []
    schedule = schedules.by_ratios(budget, schedules.at_depths(untuned.places, budget), ratios)
    chosen = make_method({"name": method.name, **untuned.parameters})
    return space.config(budget, chosen, schedule, space.positions[0])


def _single_step(name: str, space: Space) -> PruningConfig:
    [budget] = space.budgets
    schedule = Schedules(space.cost, 1, space.layers).solved(budget, [0], [])
    return PruningConfig(method=make_method({"name": name}), schedule=schedule, positions="original")
