"""How a layer of the language model would attend, seen before it runs: what methods read that look one layer ahead."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.evidence import LanguageAttention, LanguageVectors
from multimodal.runtime.answers import Compared
from multimodal.runtime.forward import Forward


class Looked(Exception):
    """Leaves an attention module once it is known what it would compare."""

    def __init__(self, compared: Compared) -> None:
        super().__init__()
        self.compared = compared


@torch.no_grad()
def look_ahead(forward: Forward, layer: Any, hidden: Tensor, rotary: Sequence[Tensor]) -> Compared:
    """What a layer would compare of some hidden states; its attention is left as soon as that is known.

    Args:
        forward: of this thread; an observer of the layer's attention raises :class:`Looked` while it looks ahead.
        layer: of the language model.
        hidden: states that reach it ``[B, L, C]``.
        rotary: angles of their positions.

    Raises:
        FlowpruneError: its attention is not observed.
    """
    forward.looking_ahead = True
    try:
        layer.self_attn(hidden_states=layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None)
    except Looked as looked:
        return looked.compared
    finally:
        forward.looking_ahead = False
    raise FlowpruneError(
        "The attention of the layer after a step ran an implementation that was not there when the block was opened: "
        "choose the attention implementation before prune()."
    )


def observed_layers(config: PruningConfig) -> list[int]:
    """Language-model layers whose attention some step reads: the one before each, or the one that it comes before."""
    asked = [each for each in config.method.evidence if isinstance(each, LanguageAttention | LanguageVectors)]
    ahead = {isinstance(each, LanguageAttention) and each.layer == "next" for each in asked}
    return sorted({step.layer - 1 + is_ahead for step in config.schedule if step.layer for is_ahead in ahead})
