"""The methods that the settings let a search choose among."""

from pipelines.settings import Settings
from search.choice import MethodChoice


def method_choices(settings: Settings) -> list[MethodChoice]:
    """One method, or those of ``method=mixed``.

    Raises:
        FlowpruneError: an unknown method or merging rule, or rules that do not fit.
    """
    method, mergings, sinks = settings.method, settings.search.merging, settings.search.sinks
    if not method.among:
        return [MethodChoice(method.name, method.fixed, method.ranges, mergings, sinks)]
    return [
        MethodChoice(name, method.fixed.get(name, {}), method.ranges.get(name, {}), mergings, sinks)
        for name in method.among
    ]
