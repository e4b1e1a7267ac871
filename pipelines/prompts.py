"""From samples to a model's inputs, and from its outputs to answers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from multimodal import FlowpruneError
from multimodal.benchmark.inputs import layouts_by_kind
from multimodal.errors import reason_of
from multimodal.families import Geometry
from multimodal.layout import Layout
from multimodal.prompts import chat_template, frames_metadata, tokenized
from pipelines.data import Sample
from pipelines.data.sample import Medium
from pipelines.data.videos import Video
from pipelines.model import OpenedModel


def build_inputs(opened: OpenedModel, samples: Sequence[Sample]) -> BatchFeature:
    """One batch, padded on the left, on the model's device and in its dtype.

    Raises:
        FlowpruneError: the processor or its chat template takes a sample not; names it.
    """
    try:
        inputs = _processed(opened.processor, samples)
    except (FlowpruneError, MemoryError):
        raise
    except Exception as error:  # of the processor's own code
        if len(samples) > 1:
            for sample in samples:  # whichever is refused alone is named
                build_inputs(opened, [sample])
        raise FlowpruneError(
            f"{samples[0].where}: the model's processor refuses it ({reason_of(error)}): change it or drop the row."
        ) from error
    return inputs.to(opened.model.device, dtype=opened.model.dtype)


def _processed(processor: Any, samples: Sequence[Sample]) -> BatchFeature:
    prompts = [_prompt(processor, sample) for sample in samples]
    given: dict[str, Any] = {}
    if any(sample.pictures for sample in samples):
        given["images"] = [[picture.shown() for picture in sample.pictures] for sample in samples]
    if any(sample.videos for sample in samples):
        given |= _frames(processor, samples)
    return tokenized(processor, prompts, **given)


def _frames(processor: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """The videos with what the processor's own rule chooses frames by."""
    if getattr(processor, "video_processor", None) is None:
        where = next(sample.where for sample in samples if sample.videos)
        raise FlowpruneError(f"{where} has a video, and this model takes pictures only: drop the row.")
    videos = [[video.frames() for video in sample.videos] for sample in samples]
    if any(isinstance(frames, str) for own in videos for frames in own):
        return {"videos": videos}
    metadata = [
        [frames_metadata(len(frames), video.fps) for frames, video in zip(own, sample.videos, strict=True)]
        for own, sample in zip(videos, samples, strict=True)
    ]
    return {"videos": videos, "video_metadata": metadata}


def _prompt(processor: Any, sample: Sample) -> str:
    messages = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in sample.turns]
    known = chat_template(processor)
    for name in sample.template:
        if not re.search(rf"\b{re.escape(name)}\b", known):
            raise FlowpruneError(f"data.template.{name} is no option of this model's chat template: leave it out.")
    return processor.apply_chat_template(messages, add_generation_prompt=True, **sample.template)


def _content(part: str | Medium) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, Video) else "image"}


def shown_layouts(geometry: Geometry, inputs: Mapping[str, Any]) -> list[Layout]:
    """The layouts of all pictures, then all videos, of a processor's output."""
    return [layout for layouts in layouts_by_kind(geometry, inputs).values() for layout in layouts]


@torch.inference_mode()
def greedy_answers(opened: OpenedModel, inputs: BatchFeature, max_new_tokens: int) -> list[str]:
    """What the model answers to a batch, greedily."""
    model: Any = opened.model
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new: Tensor = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in opened.processor.batch_decode(new, skip_special_tokens=True)]
