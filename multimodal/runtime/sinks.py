"""Attention sinks of the language model, for pictures: one unpruned forward over one prompt."""

from collections.abc import Mapping

import torch
from torch import Tensor

from multimodal.families import Modules
from multimodal.runtime.attention import observed_attention
from multimodal.sinks import LANGUAGE_SINK, column_means, sink_share


@torch.inference_mode()
def language_sinks(modules: Modules, inputs: Mapping[str, Tensor], threshold: float = LANGUAGE_SINK) -> Tensor:
    """Share of the language model's heads, over all layers, in which each token of a prompt is a sink ``[L]``.

    Args:
        modules: of the model.
        inputs: the processor's output for one sample, without padding.
        threshold: of the mean attention, above which a token is a sink.
    """
    shares: list[Tensor] = []

    def see(queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None) -> None:
        shares.append(sink_share(column_means(queries, keys, scaling, causal=True), threshold)[0])

    with observed_attention(dict.fromkeys(modules.text_layers, see)):
        modules.base(**inputs, use_cache=False)
    return torch.stack(shares).mean(0)
