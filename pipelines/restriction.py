"""What an engine that is to serve the config leaves of a method's settings (conf/serving, multimodal.serving)."""

from typing import Any

from multimodal import FlowpruneError
from multimodal.methods import method_named
from multimodal.serving.limits import servable_methods
from pipelines.console import console
from pipelines.settings import MethodSettings, Settings, Untuned


def served_method(settings: Settings) -> MethodSettings:
    """The method's settings as the engine can serve them: no weight of merged tokens, published values in one step
    before the language model; of several methods, those that select there. As they are where no engine is named.

    Raises:
        FlowpruneError: there is no such method, it reads the language model, or its weight is fixed elsewhere.
    """
    method, engine = settings.method, settings.serving.engine
    if engine is None:
        return method
    if not method.among:
        if method_named(method.name).first_layer:
            raise FlowpruneError(f"serving={engine} cannot take method={method.name}, {_reason()}.")
        untuned = method.untuned
        if untuned is not None:
            parameters = untuned.parameters | _no_weight(method.name)
            untuned = Untuned(parameters=parameters, places=[0.0], ratios=[])
        fixed = _without_weight(engine, method.name, method.fixed)
        return method.model_copy(update={"fixed": fixed, "untuned": untuned})
    among = [name for name in method.among if method_named(name).first_layer == 0]
    if not among:
        raise FlowpruneError(f"serving={engine} cannot take any of method.among {method.among}, {_reason()}.")
    for name in set(method.among) - set(among):
        console.print(f"[yellow]left out of the mixture: {name}, which reads layers of the language model[/]")
    fixed = {name: _without_weight(engine, name, method.fixed.get(name, {})) for name in among}
    return method.model_copy(update={"among": among, "fixed": fixed})


def _reason() -> str:
    return f"which reads layers of the language model: choose one of {', '.join(servable_methods())}"


def _without_weight(engine: str, name: str, fixed: dict[str, Any]) -> dict[str, Any]:
    for weight in _no_weight(name):
        if fixed.get(weight):
            raise FlowpruneError(
                f"method.fixed.{weight} is {fixed[weight]}, and serving={engine} knows no weight of merged tokens: "
                "set it to 0, or leave it out."
            )
    return fixed | _no_weight(name)


def _no_weight(name: str) -> dict[str, float]:
    weight = method_named(name).weight_parameter
    return {} if weight is None else {weight: 0.0}
