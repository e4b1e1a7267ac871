"""From samples to a model's inputs, and from its outputs to answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from pipelines.data import Sample
from pipelines.model import OpenedModel


def build_inputs(opened: OpenedModel, samples: Sequence[Sample]) -> BatchFeature:
    """One batch, padded on the left, on the model's device and in its dtype."""
    prompts = [_prompt(opened.processor, sample.question) for sample in samples]
    inputs = opened.processor(
        images=[[sample.image] for sample in samples], text=prompts, padding=True, return_tensors="pt"
    )
    return inputs.to(opened.model.device, dtype=opened.model.dtype)


def _prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


@torch.inference_mode()
def greedy_answers(opened: OpenedModel, inputs: BatchFeature, max_new_tokens: int) -> list[str]:
    """What the model answers to a batch, greedily."""
    model: Any = opened.model
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new: Tensor = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in opened.processor.batch_decode(new, skip_special_tokens=True)]
