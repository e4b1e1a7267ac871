"""The ways of running ``generate()`` that are compared."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.recording.recordings import Recordings
from multimodal.runtime import prune

UNPRUNED, PRUNED = "unpruned", "pruned"
RECORDED = "recorded"  # pruned, and replayed
COMPILED = "compiled"  # unpruned, with transformers' own static cache and compilation
LIMIT_MIB = 1 << 16  # of recordings: what does not fit into the device's memory says so
ALL = (UNPRUNED, PRUNED, RECORDED, COMPILED)
RELEASED = {"query_threshold": 30.0, "entropy_weight": 0.0, "recycling_cell": 12.0, "recycling_weight": 0.0}
RELEASED_RATIOS = (0.1166, 1.0, 0.6011)  # before the first layer, and those at one and two thirds of the depth


class NotedRecordings(Recordings):
    """Recordings that note what they cannot record, instead of warning.

    Attributes:
        reasons: in words.
    """

    def __init__(self) -> None:
        super().__init__(LIMIT_MIB)
        self.reasons: list[str] = []

    def tell(self, sentence: str) -> None:
        if sentence not in self.reasons:
            self.reasons.append(sentence)

    @property
    def note(self) -> str | None:
        """All of them."""
        return " ".join(self.reasons).rstrip(".") or None


@dataclass(frozen=True)
class Variant:
    """One way of running a model.

    Args:
        name: of it.
        config: how its prompts are pruned; None: not at all.
        opened: puts it in place while a block is open.
        options: of ``generate()``.
        note: what a reader of its figures must know.
        recordings: that it replays.
    """

    name: str
    config: PruningConfig | None = None
    opened: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None
    recordings: NotedRecordings | None = None


def variants(model: PreTrainedModel, config: PruningConfig, names: Sequence[str] = ALL) -> list[Variant]:
    """What is compared, the unpruned model first.

    Args:
        model: a stock transformers model.
        config: how it is pruned.
        names: of those that are wanted.
    """
    compiled = model.device.type == "cuda"
    note = None if compiled else "not compiled: transformers compiles decoding on a GPU alone"
    recordings = NotedRecordings()
    found = [
        Variant(UNPRUNED),
        Variant(PRUNED, config, partial(prune, model, config)),
        Variant(RECORDED, config, partial(prune, model, config, recordings=recordings), recordings=recordings),
        Variant(COMPILED, options={"cache_implementation": "static"}, note=note),
    ]
    return [variant for variant in found if variant.name in names]


def released_config(layers: int, retention: float) -> PruningConfig:
    """VFlowOpt at the values its authors released for 10 %, its first step changed for another retention.

    Args:
        layers: of the language model.
        retention: visual tokens seen by a layer ÷ original ones, averaged over layers.
    """
    places = (0, layers // 3, 2 * layers // 3)
    steps = [PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in zip(places, RELEASED_RATIOS, strict=True)]
    config = PruningConfig(method={"name": "vflowopt", **RELEASED}, schedule=steps, positions="original")
    return at_retention(config, layers, retention)


def at_retention(config: PruningConfig, layers: int, retention: float) -> PruningConfig:
    """The same config, its first step keeping more or less.

    Args:
        config: how to prune.
        layers: of the language model.
        retention: that it is to come to.

    Raises:
        FlowpruneError: no first step comes to that.
    """
    first, *others = config.schedule
    share, layer, seen = 1.0, first.layer, 0.0  # of what the first step leaves, by the layers after it
    for step in others:
        seen, share, layer = seen + share * (step.layer - layer), share * step.keep_ratio, step.layer
    seen += share * (layers - layer)
    ratio = (retention * layers - first.layer) / seen
    if not 0 < ratio <= 1:
        raise FlowpruneError(
            f"A retention of {retention:g} cannot be met by the first of the config's steps alone: choose one from "
            f"{first.layer / layers:.2g} to {(first.layer + seen) / layers:.2g}."
        )
    schedule = (PruningStep(layer=first.layer, keep_ratio=ratio), *others)
    return config.model_copy(update={"schedule": schedule})
