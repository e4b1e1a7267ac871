"""From a conversation to a model's inputs, by its own chat template and processor."""

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature

from multimodal.errors import FlowpruneError


def chat_template(processor: Any) -> str:
    """What the processor writes conversations with.

    Raises:
        FlowpruneError: it has none.
    """
    known = getattr(processor, "chat_template", None)
    if known is None:
        raise FlowpruneError(
            "The model has no chat template, of which prompts are made: put the chat_template.jinja that it was "
            "trained with into its folder."
        )
    return str(known)


def tokenized(processor: Any, prompts: Sequence[str], **shown: Any) -> BatchFeature:
    """One batch of what the chat template wrote, padded on the left.

    Args:
        processor: the model's.
        prompts: texts.
        shown: images and videos, as the processor takes them.
    """
    bos = getattr(processor.tokenizer, "bos_token", None)
    if bos and prompts[0].startswith(bos):  # which the tokenizer would write again
        shown["add_special_tokens"] = False
    return processor(text=list(prompts), padding=True, return_tensors="pt", **shown)


def frames_metadata(count: int, fps: float | None) -> dict[str, Any]:
    """What a processor's own rule chooses among frames by.

    Args:
        count: of the frames.
        fps: how many of them a second has; None: nobody knows.
    """
    indices = list(range(count))  # where the rule is to take all
    return {"total_num_frames": count, "frames_indices": indices, "fps": fps, "duration": count / (fps or 1)}
