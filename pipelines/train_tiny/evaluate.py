"""How often the exported model is right, kind by kind, and what is left of that when visual tokens are dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.sample import Sample
from pipelines.data.scenes import KINDS, SIZE, scenes
from pipelines.train_tiny.model import END, VOCABULARY
from pipelines.train_tiny.packing import prompt_ids

LONGEST_ANSWER = 3
Row = dict[str, float]


def evaluate(folder: Path, options: DictConfig) -> dict[str, Row]:
    """Rows of exact-match accuracy by kind: unpruned through ``generate``, then pruned before the decoder."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    processor = AutoProcessor.from_pretrained(folder)
    samples = list(scenes("test", options.samples))
    table = {"all tokens": by_kind(samples, generated(model, processor, samples, options.batch))}
    pictures, scores = look(model, processor, samples, options.batch)
    patches = pictures.shape[1]
    everything = torch.arange(patches).expand(len(samples), -1)
    for ratio in options.keep_ratios:
        for method, score in scores.items():
            kept = score.topk(int(ratio * patches + 0.5), dim=1).indices.sort(dim=1).values
            table[f"{method}, keep {ratio}"] = by_kind(samples, answered(model, processor, samples, pictures, kept))
    start = len(prompt_ids(processor, "")[0])
    with hidden_from(model, options.text_only_from, slice(start, start + patches)):
        answers = answered(model, processor, samples, pictures, everything)
    table[f"visual tokens in {options.text_only_from} layers only"] = by_kind(samples, answers)
    return table


def by_kind(samples: list[Sample], answers: list[str]) -> Row:
    """The share of exact matches of every kind and the mean over the kinds."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for sample, answer in zip(samples, answers, strict=True):
        right[str(sample.kind)].append(answer == sample.answer)
    row = {kind: float(np.mean(hits)) for kind, hits in right.items()}
    return {**row, "mean": float(np.mean(list(row.values())))}


@torch.no_grad()
def generated(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: list[Sample], batch: int
) -> list[str]:
    """What a user gets: chat template, processor, ``generate``."""
    answers = []
    for first in range(0, len(samples), batch):
        part = samples[first : first + batch]
        contents = [[{"type": "image"}, {"type": "text", "text": sample.question}] for sample in part]
        chats = [[{"role": "user", "content": content}] for content in contents]
        prompts = processor.apply_chat_template(chats, add_generation_prompt=True)
        inputs = processor(images=[sample.image for sample in part], text=prompts, padding=True, return_tensors="pt")
        tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(tokens, skip_special_tokens=True)
    return answers


@torch.no_grad()
def look(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: list[Sample], batch: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Visual tokens [samples, patches, hidden] and importance maps [samples, patches], higher is kept.

    Attention is that of the tower layer which feeds the projector.
    """
    tokens, received, cls = [], [], []
    for first in range(0, len(samples), batch):
        images = [sample.image for sample in samples[first : first + batch]]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        output = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        tokens.append(model.model.multi_modal_projector(output.hidden_states[-2][:, 1:]))
        attention = output.attentions[-2].mean(dim=1)
        received.append(attention.mean(dim=1)[:, 1:])
        cls.append(attention[:, 0, 1:])
    noise = torch.rand(len(samples), tokens[0].shape[1], generator=torch.Generator().manual_seed(0))
    maps = {
        "random": noise,
        "attention received": torch.cat(received),
        "CLS attention": torch.cat(cls),
        "oracle": torch.stack([asked_area(sample, noise.shape[1]) for sample in samples]) + 1e-3 * noise,
    }
    return torch.cat(tokens), maps


def asked_area(sample: Sample, patches: int) -> torch.Tensor:
    """How much of each patch lies in the regions asked about: [patches], 0 to 1."""
    side = int(patches**0.5)
    inside = torch.zeros(SIZE, SIZE)
    for left, top, right, bottom in sample.regions:
        inside[top:bottom, left:right] = 1
    return F.avg_pool2d(inside[None], SIZE // side).flatten()


@torch.no_grad()
def answered(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: list[Sample],
    pictures: torch.Tensor,
    kept: torch.Tensor,
) -> list[str]:
    """Greedy answers from some of the visual tokens at their original positions; ``kept`` is [samples, kept]."""
    prompts = [prompt_ids(processor, sample.question) for sample in samples]
    answers = [""] * len(samples)
    order = sorted(range(len(samples)), key=lambda index: len(prompts[index][1]))
    for _, group in groupby(order, key=lambda index: len(prompts[index][1])):
        for rows in torch.tensor(list(group)).split(50):
            head, text = (torch.tensor([prompts[row][part] for row in rows]) for part in (0, 1))
            places = kept[rows]
            picture = pictures[rows].gather(1, places.unsqueeze(-1).expand(-1, -1, pictures.shape[-1]))
            words = _greedy(model, head, picture, places, text, pictures.shape[1])
            for row, answer in zip(rows.tolist(), processor.batch_decode(words, skip_special_tokens=True), strict=True):
                answers[row] = answer
    return answers


def _greedy(
    model: LlavaForConditionalGeneration,
    head: torch.Tensor,
    picture: torch.Tensor,
    places: torch.Tensor,
    text: torch.Tensor,
    patches: int,
) -> torch.Tensor:
    """Answer tokens, [batch, at most 3]; everything after the end token is the end token again."""
    embedding = model.get_input_embeddings()
    prompt = text.shape[1]
    for _ in range(LONGEST_ANSWER):
        embeds = torch.cat([embedding(head), picture, embedding(text)], dim=1)
        after = torch.arange(text.shape[1]).expand(len(text), -1) + head.shape[1] + patches
        positions = torch.cat([torch.arange(head.shape[1]).expand_as(head), places + head.shape[1], after], dim=1)
        length = embeds.shape[1]
        causal = torch.full((length, length), torch.finfo(embeds.dtype).min).triu(1).expand(len(text), 1, -1, -1)
        hidden = model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=causal, use_cache=False
        ).last_hidden_state
        word = model.lm_head(hidden[:, -1]).argmax(dim=-1)
        if text.shape[1] > prompt:
            word = torch.where(text[:, -1] == VOCABULARY[END], text[:, -1], word)
        text = torch.cat([text, word[:, None]], dim=1)
        if (word == VOCABULARY[END]).all():
            break
    return text[:, prompt:]


@contextmanager
def hidden_from(model: LlavaForConditionalGeneration, layer: int, visual: slice) -> Iterator[None]:
    """Mask the visual tokens as keys from decoder layer ``layer`` on."""

    def hide(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs["attention_mask"].clone()
        mask[:, :, visual.stop :, visual] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    late = model.model.language_model.layers[layer:]
    handles = [module.register_forward_pre_hook(hide, with_kwargs=True) for module in late]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
