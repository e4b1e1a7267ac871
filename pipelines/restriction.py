"""What an engine that is to serve the config leaves of a method's settings (conf/serving, multimodal.serving)."""

from typing import Any

from multimodal import FlowpruneError
from multimodal.families import Geometry
from multimodal.methods import method_named
from multimodal.serving.handover import check_family
from multimodal.serving.limits import servable_methods
from multimodal.serving.vllm_arguments import hf_overrides
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
    fixed = {name: _without_weight(engine, name, method.fixed.get(name, {})) for name in among}
    return method.model_copy(update={"among": among, "fixed": fixed})


def check_served_model(settings: Settings, geometry: Geometry) -> None:
    """Refuse a model that the engine cannot serve pruned; none where no engine is named.

    Raises:
        FlowpruneError: its language model asks more of an image than embeddings, or the plugin does not have it.
    """
    if settings.serving.engine is not None:
        check_family(geometry)
        hf_overrides(geometry.config)


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
