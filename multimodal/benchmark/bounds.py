"""The least time that a device can need, from what has to be computed and read: no launch, no waiting."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import mean

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PretrainedConfig

from multimodal.benchmark.device import Peaks
from multimodal.benchmark.inputs import Inputs, encode, planned
from multimodal.benchmark.variants import Variant
from multimodal.costs import decoding_flops, kv_bytes, prefill_flops
from multimodal.families import Modules


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and bytes that are read or written at least once."""

    flops: float
    bytes: float

    def seconds(self, peaks: Peaks) -> float:
        """On a device that does nothing else, and computes while it reads."""
        return max(self.flops / peaks.flops, self.bytes / peaks.bandwidth)


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights, and parameters of its head.

    Args:
        tower: of vision tower and projector.
        layers: of the language model's layers.
        head: of the matrix that gives a token's logits.
        element: of one number.
    """

    tower: int
    layers: int
    head: int
    element: int

    @classmethod
    def of(cls, modules: Modules) -> "Weights":
        """Of a live model."""
        base, text, head = modules.base, modules.text_model, modules.model.get_output_embeddings()
        own = {id(each) for each in text.parameters()}
        tower = sum(each.nbytes for each in base.parameters() if id(each) not in own)
        layers = sum(each.nbytes for each in modules.text_layers.parameters())
        return cls(tower, layers, 0 if head is None else head.weight.nbytes, modules.model.dtype.itemsize)


def prefill_work(text_config: PretrainedConfig, rows: Sequence[Sequence[int]], weights: Weights) -> Work:
    """Of a batch's prefill and its first tokens: weights are read once, keys and values written.

    Args:
        text_config: of the language model.
        rows: tokens that each layer sees, of each row.
        weights: of the model.
    """
    head = 2 * weights.head // weights.element
    flops = sum(prefill_flops(text_config, tokens) + head for tokens in rows)
    cached = sum(kv_bytes(text_config, tokens, weights.element) for tokens in rows)
    return Work(flops, weights.layers + weights.head + cached)


def decoding_work(text_config: PretrainedConfig, rows: Sequence[Sequence[int]], weights: Weights) -> Work:
    """Of one more token a row: weights are read once, keys and values of each row."""
    head = 2 * weights.head // weights.element
    flops = sum(decoding_flops(text_config, tokens) + head for tokens in rows)
    cached = sum(kv_bytes(text_config, tokens, weights.element) for tokens in rows)
    return Work(flops, weights.layers + weights.head + cached)


@torch.no_grad()
def tower_work(modules: Modules, inputs: Inputs, weights: Weights) -> Work:
    """Of vision tower and projector, whose operations are counted as they run."""
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        encode(modules, inputs)
    return Work(counter.get_total_flops(), weights.tower)


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


class Bounds:
    """The least times of a model on some prompts.

    Args:
        modules: of the model.
        prompts: batches.
        peaks: of the device.
    """

    def __init__(self, modules: Modules, prompts: Sequence[Inputs], peaks: Peaks) -> None:
        self._modules, self._prompts, self._peaks = modules, prompts, peaks
        self._weights = Weights.of(modules)
        self._towers: dict[bool, list[Work]] = {}  # by whether patches leave inside

    def of(self, way: Variant) -> dict[str, float]:
        """Of a variant, means over the prompts."""
        text, schedule = self._modules.text_model.config, () if way.config is None else way.config.schedule
        first, token = [], []
        for inputs, tower in zip(self._prompts, self._tower(way), strict=True):
            rows = [row.tokens_by_layer for row in planned(self._modules, inputs, schedule).rows]
            prefill, decoding = prefill_work(text, rows, self._weights), decoding_work(text, rows, self._weights)
            first.append(tower.seconds(self._peaks) + prefill.seconds(self._peaks))
            token.append(decoding.seconds(self._peaks))
        return {"first_token_bound": mean(first), "decoding_bound": mean(token)}

    def _tower(self, way: Variant) -> list[Work]:
        inside = way.config is not None and way.config.method.tower is not None
        if inside not in self._towers:
            with way.opened() if inside else nullcontext():
                self._towers[inside] = [tower_work(self._modules, each, self._weights) for each in self._prompts]
        return self._towers[inside]
