"""What a call of the model is given: read once, and refused in a sentence where pruning could not mean it as it is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.errors import FlowpruneError
from multimodal.families import Modules
from multimodal.runtime.watch import Modality

PIXELS: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}


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


def seen_by_last(mask: Any, tokens: int) -> Tensor | None:
    """The padding mask ``[B, tokens]`` of a prompt, from what was made for the attention of a static cache, or None.

    Args:
        mask: ``[B, 1, tokens, slots]``, true or 0 where something is seen; or several of them by kind of layer.
        tokens: of the prompt.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return two_dimensional(mask)
    last = mask[:, 0, -1, :tokens]
    return last if last.dtype == torch.bool else last == 0


def placeholders(modules: Modules, embeds: Tensor) -> Tensor:
    """Token ids of placeholders among embeddings, found as the model itself does it, −1 elsewhere ``[B, L]``."""
    geometry, table = modules.geometry, modules.text_model.get_input_embeddings()
    ids = torch.full(embeds.shape[:2], -1, device=embeds.device)
    for token in (geometry.image_token_id, geometry.video_token_id):
        if token is not None:
            own = table(torch.tensor([token], device=embeds.device)).to(embeds.dtype)
            ids = ids.masked_fill((embeds == own).all(-1), token)
    return ids


def kinds(kwargs: Mapping[str, Any]) -> list[Modality]:
    """What a forward is given to look at."""
    encoded = kwargs.get("mm_encoder_outputs") or {}
    return [kind for kind, name in PIXELS.items() if kwargs.get(name) is not None or encoded.get(kind) is not None]


def on_host(
    ids: Tensor, mask: Tensor | None, positions: Tensor | None
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64] | None]:
    """Token ids, padding mask and positions ``[B, L]`` of a prompt: the one wait for the device that pruning adds."""
    others = [None if mask is None else mask[:, -ids.shape[1] :], positions]
    parts = [ids, *(other.to(ids).expand_as(ids) for other in others if other is not None)]
    first, *rest = torch.stack(parts).cpu().numpy() if len(parts) > 1 else [ids.cpu().numpy()]
    valid = np.ones(first.shape, dtype=bool) if mask is None else rest.pop(0) != 0
    return first, valid, rest[0] if rest else None


def new_tokens(mask: Tensor | None, read: int, batch: int, queries: int) -> Tensor | None:
    """Which of the tokens that follow a pruned prompt are no padding ``[B, queries]``; None: all.

    Raises:
        FlowpruneError: the mask is not over the conversation.
    """
    if mask is None:
        return None
    if mask.shape[1] != read + queries:
        raise FlowpruneError(
            f"attention_mask is over {mask.shape[1]} tokens, but the conversation has {read + queries}, {read} of them "
            "read: pass a mask over all of it, pruned tokens counted."
        )
    if batch == queries == 1:
        return None
    new = mask[:, -queries:].bool()
    return None if bool(new.all()) else new
