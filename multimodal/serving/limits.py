"""What vLLM can serve of a pruning config, and the nearest config that it can.

It is handed the tokens that are left, as ready embeddings, with their positions: vision tower, projector and step run
in a process of ours before it. So whatever is decided there is free: pruning inside the tower, merging, sinks, counts
that follow the image (placeholders are as many as the rows that are handed over). What would have to happen inside its
language model is not: later steps, methods that read its layers, and the weight of merged tokens, which every later
layer adds to its attention logits.
"""

from collections.abc import Sequence

from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.methods import Method


def check_servable(config: PruningConfig, layers: int) -> None:
    """Refuse a config that vLLM cannot serve.

    Args:
        config: how to prune.
        layers: of the model's language model.

    Raises:
        FlowpruneError: it cannot; one sentence with why, and the nearest config that it can.
    """
    if not (why := _obstacles(config)):
        return
    said = f"vLLM cannot serve {_listed(why, 'or')}"
    ratio = one_step_ratio(config.schedule, layers)
    if config.method.first_layer:
        raise FlowpruneError(
            f"{said}: choose a method that selects before them ({', '.join(servable_methods())}), with one step at "
            f"layer 0 and keep_ratio {ratio:.4g} (the same retention)."
        )
    if config.merging is None and config.method.merged_weight and config.method.weight_parameter is None:
        raise FlowpruneError(f"{said}: set the parameter of {config.method.name} that gives the weight to 0.")
    changes = _changes(config, nearest_servable(config, layers))
    raise FlowpruneError(f"{said}: the nearest config that it can has {_listed(changes, 'and')}.")


def nearest_servable(config: PruningConfig, layers: int) -> PruningConfig:
    """The same method and parameters as vLLM can serve them: one step before the language model with the same
    retention, merged tokens without a weight.

    It leaves as many bytes in the KV cache, up to the rounding of whole tokens, and takes no more FLOPs, which grow
    faster than the tokens of a layer. Nobody has searched it, so budget and provenance are left out where it differs.

    Args:
        config: how to prune, by a method that selects before the language model.
        layers: of the model's language model.
    """
    if not _obstacles(config):
        return config
    method, merging = config.method, config.merging
    if merging is None and method.merged_weight and method.weight_parameter is not None:
        method = method.model_copy(update={method.weight_parameter: 0.0})
    if merging is not None and merging.weight:
        merging = merging.model_copy(update={"weight": 0.0})
    ratio = one_step_ratio(config.schedule, layers)
    return config.model_copy(
        update={
            "method": method,
            "merging": merging,
            "schedule": (PruningStep(layer=0, keep_ratio=ratio),),
            "budget": None,
            "provenance": None,
        }
    )


def one_step_ratio(schedule: Sequence[PruningStep], layers: int) -> float:
    """The keep ratio at which one step before the language model has the retention of a schedule.

    Σ over layers of the share of visual tokens that each sees, divided by the layers.
    """
    seen, left, since = 0.0, 1.0, 0
    for step in schedule:
        seen += (step.layer - since) * left
        left, since = left * step.keep_ratio, step.layer
    return (seen + (layers - since) * left) / layers


def servable_methods() -> list[str]:
    """Names of the methods that select before the language model."""
    return sorted(name for name, kind in Method.registry.items() if kind.first_layer == 0)


def _obstacles(config: PruningConfig) -> list[str]:
    """What of a config it cannot do."""
    found = []
    layers = [step.layer for step in config.schedule]
    if config.method.first_layer:
        found.append(f"the method {config.method.name}, which reads layers of the language model")
    elif layers != [0]:
        found.append(f"steps before layers {layers} (it takes one, before the language model)")
    if config.merged_weight:
        found.append(f"merged tokens of weight {config.merged_weight:g} (it knows none)")
    return found


def _changes(config: PruningConfig, nearest: PruningConfig) -> list[str]:
    """What of the nearest config differs."""
    found = []
    if nearest.schedule != config.schedule:
        found.append(f"one step at layer 0 with keep_ratio {nearest.schedule[0].keep_ratio:.4g} (the same retention)")
    if nearest.method != config.method:
        found.append(f"method.{config.method.weight_parameter} 0")
    if nearest.merging != config.merging:
        found.append("merging.weight 0")
    return found


def _listed(items: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
