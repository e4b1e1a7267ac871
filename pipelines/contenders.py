"""What a tuned config is compared with, at the same budget: the method's untuned values, uniform and random tokens."""

from collections.abc import Mapping

from multimodal import PruningConfig
from multimodal.methods import make_method
from pipelines.settings import Settings
from search.space import Space

UNPRUNED, TUNED, UNTUNED, UNIFORM, RANDOM = "unpruned", "tuned", "untuned", "uniform", "random"


def contenders(settings: Settings, space: Space, tuned: PruningConfig) -> Mapping[str, PruningConfig | None]:
    """Configs by name; None is the unpruned model."""
    return {
        UNPRUNED: None,
        TUNED: tuned,
        UNTUNED: untuned_config(settings, space),
        UNIFORM: _single_step("uniform", space),
        RANDOM: _single_step("random", space),
    }


def untuned_config(settings: Settings, space: Space) -> PruningConfig:
    """The method as its paper uses it without a search, with the last ratio solved for the budget."""
    untuned, [budget] = settings.method.untuned, space.budgets
    layers: list[int] = []
    for place in untuned.places:
        first = max(layers[-1] + 1, space.first_inner_layer) if layers else space.earliest
        wanted = max(round(place * space.layers), first)
        layers.append(wanted if layers else min(wanted, space.latest(budget)))
    [single] = space.schedule(budget, [0], [])
    ratios = [single.keep_ratio * untuned.ratios[0], *untuned.ratios[1:]] if untuned.ratios else []
    return space.on_budget(budget, untuned.parameters, layers, ratios, space.positions[0])


def _single_step(name: str, space: Space) -> PruningConfig:
    [budget] = space.budgets
    schedule = space.schedule(budget, [0], [])
    return PruningConfig(method=make_method({"name": name}), schedule=schedule, positions="original")
