"""How often the exported model is right, kind by kind, and what is left of that when visual tokens are dropped."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from multimodal import load_model
from pipelines.data.sample import Sample
from pipelines.data.scenes import KINDS, Background, scenes
from pipelines.train_tiny.maps import look, oracle, statistics
from pipelines.train_tiny.model import END, VOCABULARY
from pipelines.train_tiny.packing import prompt_ids

LONGEST_ANSWER = 3
Row = dict[str, float]


def evaluate(folder: Path, options: DictConfig, background: Background | None = None) -> dict[str, Row]:
    """Rows of exact-match accuracy by kind: unpruned through ``generate``, then pruned before the decoder."""
    model, processor = load(folder)
    samples = list(scenes("test", options.samples, background=background))
    table = {"all tokens": by_kind(samples, generated(model, processor, samples, options.batch))}
    seen = look(model, processor, samples, options.batch)
    patches = seen.tokens.shape[1]
    maps = {
        "random": torch.rand(seen.cls.shape, generator=torch.Generator().manual_seed(0)),
        **statistics(samples, seen),
        "attention received": seen.received,
        "CLS attention": seen.cls,
        "oracle": oracle(samples, patches),
    }
    for ratio in options.keep_ratios:
        for name, scores in maps.items():
            table[f"{name}, keep {ratio}"] = pruned(model, processor, samples, seen.tokens, scores, ratio)
    start = len(prompt_ids(processor, "")[0])
    with hidden_from(model, options.text_only_from, slice(start, start + patches)):
        row = pruned(model, processor, samples, seen.tokens, maps["random"], ratio=1.0)
    table[f"visual tokens in {options.text_only_from} layers only"] = row
    return table


def load(folder: Path | str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The exported model in float32, with attention maps, and its processor."""
    model, processor = load_model(folder, dtype="float32", device="cpu", attention="eager")
    assert isinstance(model, LlavaForConditionalGeneration) and isinstance(processor, LlavaProcessor)
    return model, processor


def pruned(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: list[Sample],
    tokens: torch.Tensor,
    scores: torch.Tensor,
    ratio: float,
) -> Row:
    """Accuracy when the visual tokens with the highest scores are kept, in one step before the decoder."""
    kept = scores.topk(int(ratio * tokens.shape[1] + 0.5), dim=1).indices.sort(dim=1).values
    return by_kind(samples, answered(model, processor, samples, tokens, kept))


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
