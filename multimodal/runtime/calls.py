"""Calls that a pruned prompt cannot answer as the stock model would: refused in a sentence, before anything is run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.errors import FlowpruneError


def check_outputs(config: PretrainedConfig, kwargs: Mapping[str, Any]) -> None:
    """Refuse what is counted over the unpruned prompt.

    Args:
        config: of the model.
        kwargs: of a forward that reads images.

    Raises:
        FlowpruneError: one sentence that names the argument and the fix.
    """
    if kwargs.get("labels") is not None:
        raise FlowpruneError(
            "labels are over the unpruned prompt: compute the loss from logits, whose tokens report[i].places tells."
        )
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        raise FlowpruneError(
            "logits_to_keep names places of the unpruned prompt: pass how many of the last ones to keep."
        )
    router = kwargs.get("output_router_logits")
    if router or (router is None and getattr(config.get_text_config(), "output_router_logits", False)):
        raise FlowpruneError(
            "output_router_logits needs a mask over the unpruned prompt: leave it off inside a prune() block."
        )


def text_positions(kwargs: Mapping[str, Any]) -> Tensor | None:
    """Position ids that count tokens ``[B or 1, L]``; None if there are none, or rotary axes alone."""
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.ndim == 2:
        return positions
    return None if len(positions) == 3 else positions[0]


def check_unpacked(positions: NDArray[np.int64] | None) -> None:
    """Refuse several prompts packed into one row, told apart by their positions.

    Args:
        positions: of a prompt that has no mask ``[B, L]``; None: they count its tokens.

    Raises:
        FlowpruneError: they do not go on by one.
    """
    if positions is not None and (np.diff(positions) != 1).any():
        raise FlowpruneError(
            "position_ids without an attention_mask do not go on by one, as where several prompts are packed into a "
            "row: pass one prompt a row, with its attention_mask."
        )


def two_dimensional(mask: Any) -> Tensor | None:
    """A padding mask ``[B, L]``, or None.

    Raises:
        FlowpruneError: it is one made for attention.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise FlowpruneError("A ready-made attention mask cannot be pruned: pass the 2-D padding mask.")
    return mask
