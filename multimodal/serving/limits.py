"""What an engine can serve of a pruning config, and the nearest config that it can.

Such an engine is handed the tokens that are left, as ready embeddings: vision tower, projector and step run in a
process of ours before it. So whatever is decided there is free: pruning inside the tower, merging, sinks, counts that
follow the image (the engine sizes an image's placeholders from the tensor that it is given). What would have to happen
inside the engine's language model is not: later steps, methods that read its layers, and the weight of merged tokens,
which every later layer adds to its attention logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.methods import Method
from multimodal.options import Positions


@dataclass(frozen=True)
class Limits:
    """What an engine can do with the tokens that it is handed.

    Args:
        engine: in words.
        positions: that it can give them, the best first.
    """

    engine: str
    positions: tuple[Positions, ...]


VLLM = Limits("vLLM with flowprune's plugin", ("original", "compact"))
STOCK_VLLM = Limits("A stock vLLM", ("compact",))


def check_servable(config: PruningConfig, layers: int, limits: Limits = VLLM) -> None:
    """Refuse a config that an engine cannot serve.

    Args:
        config: how to prune.
        layers: of the model's language model.
        limits: of the engine.

    Raises:
        FlowpruneError: it cannot; one sentence with why, and the nearest config that it can.
    """
    if not (why := _obstacles(config, limits)):
        return
    said = f"{limits.engine} cannot serve {_listed(why, 'or')}"
    ratio = one_step_ratio(config.schedule, layers)
    if config.method.first_layer:
        raise FlowpruneError(
            f"{said}: choose a method that selects before them ({', '.join(servable_methods())}), with one step at "
            f"layer 0 and keep_ratio {ratio:.4g} (the same retention)."
        )
    if config.merging is None and config.method.merged_weight and config.method.weight_parameter is None:
        raise FlowpruneError(f"{said}: set the parameter of {config.method.name} that gives the weight to 0.")
    changes = _changes(config, nearest_servable(config, layers, limits))
    raise FlowpruneError(f"{said}: the nearest config that it can has {_listed(changes, 'and')}.")


def nearest_servable(config: PruningConfig, layers: int, limits: Limits = VLLM) -> PruningConfig:
    """The same method and parameters as an engine can serve them: one step before the language model with the same
    retention, merged tokens without a weight, positions that the engine can give.

    It leaves as many bytes in the KV cache, up to the rounding of whole tokens, and takes no more FLOPs, which grow
    faster than the tokens of a layer. Nobody has searched it, so budget and provenance are left out where it differs.

    Args:
        config: how to prune, by a method that selects before the language model.
        layers: of the model's language model.
        limits: of the engine.
    """
    if not _obstacles(config, limits):
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
            "positions": config.positions if config.positions in limits.positions else limits.positions[0],
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


def _obstacles(config: PruningConfig, limits: Limits) -> list[str]:
    """What of a config the engine cannot do."""
    found = []
    layers = [step.layer for step in config.schedule]
    if config.method.first_layer:
        found.append(f"the method {config.method.name}, which reads layers of the language model")
    elif layers != [0]:
        found.append(f"steps before layers {layers} (it takes one, before the language model)")
    if config.merged_weight:
        found.append(f"merged tokens of weight {config.merged_weight:g} (it knows none)")
    if config.positions not in limits.positions:
        found.append(f"{config.positions} positions (it gives {' or '.join(limits.positions)} ones)")
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
    if nearest.positions != config.positions:
        found.append(f"positions {nearest.positions}")
    return found


def _listed(items: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
