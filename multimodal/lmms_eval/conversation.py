"""Conversations as lmms-eval's tasks write them, as a processor takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import BatchFeature
from transformers.image_utils import load_image

from multimodal.errors import FlowpruneError, reason_of
from multimodal.lmms_eval.clip import Clip, read_clip
from multimodal.prompts import chat_template, tokenized

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What is said, and what is shown, in its order.

    Args:
        where: its task and number, for messages.
        messages: without pictures and videos, but with their places.
        images, clips: which are shown there.
        counts: whether it is a part of the evaluation, and no copy that keeps processes in step.
    """

    where: str
    messages: tuple[Message, ...]
    images: tuple[Image.Image, ...] = ()
    clips: tuple[Clip, ...] = ()
    counts: bool = True

    @property
    def kinds(self) -> tuple[bool, bool]:
        """Whether there are images, and videos: processors take no batch in which only some have."""
        return bool(self.images), bool(self.clips)


def read_conversation(
    messages: Sequence[Message], most_frames: int, where: str = "The conversation", counts: bool = True
) -> Conversation:
    """A conversation with all that it shows in memory.

    Args:
        messages: as transformers' chat templates take them; an image is a picture or its file, a video its file.
        most_frames: of a video, evenly apart.
        where, counts: of the conversation.

    Raises:
        FlowpruneError: an image or video cannot be read, or is something else.
    """
    said: list[Message] = []
    images: list[Image.Image] = []
    clips: list[Clip] = []
    for message in messages:
        content: list[dict[str, str]] = []
        for part in message["content"]:
            kind = part["type"]
            if kind not in ("text", "image", "video"):
                raise FlowpruneError(f"{where} has {kind}, which flowprune does not take: choose another task.")
            try:
                if kind == "image":
                    images.append(load_image(part["image"]).convert("RGB"))
                elif kind == "video":
                    clips.append(read_clip(part, most_frames))
            except Exception as error:  # a broken file breaks whatever reads it
                raise FlowpruneError(
                    f"{where}: its {kind} cannot be read ({reason_of(error)}): mend the data."
                ) from error
            content.append({"type": "text", "text": part["text"]} if kind == "text" else {"type": kind})
        said.append({"role": message["role"], "content": content})
    return Conversation(where, tuple(said), tuple(images), tuple(clips), counts)


def build_inputs(processor: Any, talks: Sequence[Conversation]) -> BatchFeature:
    """One batch, padded on the left.

    Args:
        processor: the model's.
        talks: conversations, all of the same kinds.

    Raises:
        FlowpruneError: the processor or its chat template refuses one.
    """
    _ = chat_template(processor)  # refuses a model without
    [first, *others] = talks
    where = first.where if not others else f"{first.where} or one of {len(others)} beside it"
    if first.clips and getattr(processor, "video_processor", None) is None:
        raise FlowpruneError(f"{where} has a video, and this model takes images only: choose another task.")
    shown: dict[str, Any] = {}
    if first.images:
        shown["images"] = [list(each.images) for each in talks]
    if first.clips:
        shown["videos"] = [[clip.frames for clip in each.clips] for each in talks]
        shown["video_metadata"] = [[clip.metadata for clip in each.clips] for each in talks]
    try:
        prompts = [processor.apply_chat_template(list(each.messages), add_generation_prompt=True) for each in talks]
        return tokenized(processor, prompts, **shown)
    except Exception as error:  # of the processor's own code
        raise FlowpruneError(
            f"{where}: the model's processor refuses it ({reason_of(error)}): choose another task or model."
        ) from error
