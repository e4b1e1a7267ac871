"""The methods that the settings let a search choose among."""

from pipelines.settings import Settings
from search.choice import MethodChoice


def method_choices(settings: Settings) -> list[MethodChoice]:
    """One method, or those of ``method=mixed``.

    Raises:
        FlowpruneError: an unknown method or merging rule, or rules that do not fit.
    """
    method, mergings = settings.method, settings.search.merging
    if not method.among:
        return [MethodChoice(method.name, method.fixed, method.ranges, mergings)]
    return [
        MethodChoice(name, method.fixed.get(name, {}), method.ranges.get(name, {}), mergings) for name in method.among
    ]
