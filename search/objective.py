"""The objective: the discrepancy of the last prompt token's representation with and without pruning.

A trial is the language model's pruned prefill on cached features: no vision tower, no head, no decoding.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from multimodal import PruningConfig, prune
from multimodal.costs import Workload
from multimodal.families import Family
from multimodal.observation import MeanAttention, VisionObservation
from multimodal.prompt import Prompt, importance_maps
from multimodal.pruner import Pruner
from search.calibration import CalibrationSample


@dataclass(frozen=True)
class Batch:
    """Calibration samples of similar length, padded on the left and on the model's device."""

    embeds: Tensor
    valid: Tensor
    prompt: Prompt
    vision: Sequence[VisionObservation]
    reference: Tensor
    text_inputs: Mapping[str, Any]  # what else the text model is given


class Objective:
    """Evaluates pruning configs on calibration samples.

    Args:
        family: of the model.
        samples: the calibration samples.
        batch_size: samples prefilled at once.
        seed: of the order in which batches are evaluated, the same for every trial.

    Attributes:
        samples: how many samples a whole evaluation looks at.
        workload: what schedules leave of their prompts' costs.
    """

    def __init__(self, family: Family, samples: Sequence[CalibrationSample], batch_size: int, seed: int) -> None:
        self.family = family
        prompts = [(sample.layouts, int((~sample.is_visual).sum())) for sample in samples]
        self.samples = len(samples)
        self.workload = Workload(family.text_model.config, prompts)
        by_length = sorted(samples, key=lambda sample: len(sample.embeds))
        groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        random.Random(seed).shuffle(groups)
        self.batches = [_batch(family, group) for group in groups]

    def shares(self, config: PruningConfig) -> dict[str, float]:
        """Retention, and prefill FLOPs and KV bytes as shares of the unpruned model's, over all samples."""
        return asdict(self.workload.shares(config.schedule))

    @torch.inference_mode()
    def evaluate(
        self, config: PruningConfig, after_batch: Callable[[list[float]], None] = lambda discrepancies: None
    ) -> list[float]:
        """The discrepancy of each sample: 1 − cosine similarity.

        Args:
            config: the config.
            after_batch: told the discrepancies so far; may raise to stop early.
        """
        discrepancies: list[float] = []
        with prune(self.family.model, config) as pruner:
            for batch in self.batches:
                hidden = self.prefill(batch, pruner)[:, -1]
                discrepancies += (1 - torch.cosine_similarity(hidden.float(), batch.reference, dim=-1)).tolist()
                after_batch(discrepancies)
        return discrepancies

    def prefill(self, batch: Batch, pruner: Pruner | None, cache: Cache | None = None) -> Tensor:
        """The language model's last hidden states of a batch ``[B, L, C]``.

        Args:
            batch: one of :attr:`batches`.
            pruner: of the model, from an open :func:`multimodal.prune` block; None: unpruned.
            cache: filled if given.
        """
        if pruner is not None:
            maps = importance_maps(self.family, pruner.config, batch.prompt.layouts, batch.vision)
            pruner.feed(replace(batch.prompt, maps=maps))
        return self.family.text_model(
            inputs_embeds=batch.embeds,
            attention_mask=batch.valid.long(),
            use_cache=cache is not None,
            **{self.family.cache_name: cache},
            **batch.text_inputs,
        ).last_hidden_state


def _batch(family: Family, samples: Sequence[CalibrationSample]) -> Batch:
    device, longest = family.text_model.device, max(len(sample.embeds) for sample in samples)
    pads = [longest - len(sample.embeds) for sample in samples]

    def padded(tensors: Sequence[Tensor], value: int = 0) -> Tensor:
        return torch.stack([pad(t, (p, 0), value=value) for t, p in zip(tensors, pads, strict=True)])

    is_visual = padded([sample.is_visual for sample in samples])
    text_inputs: dict[str, Any] = {"position_ids": padded([s.position_ids for s in samples]).to(device)}
    if text_inputs["position_ids"].ndim == 3:
        text_inputs["position_ids"] = text_inputs["position_ids"].transpose(0, 1)  # axes first
    deepstack = [sample.deepstack for sample in samples if sample.deepstack is not None]
    if deepstack:
        levels = torch.cat(deepstack, dim=1).to(device)
        text_inputs |= {"visual_pos_masks": is_visual.to(device), "deepstack_visual_embeds": list(levels)}
    blocks = [sample.blocks for sample in samples if sample.blocks is not None]
    images = [(row, image) for row, sample in enumerate(samples) for image in range(len(sample.layouts))]
    prompt = Prompt(
        layouts=[samples[row].layouts[image] for row, image in images],
        rows=[row for row, _ in images],
        places=[samples[row].places(image) + pads[row] for row, image in images],
        maps=None,
        blocks=padded(blocks, -1).to(device) if blocks else None,
    )
    return Batch(
        torch.stack([pad(s.embeds, (0, 0, p, 0)) for s, p in zip(samples, pads, strict=True)]).to(device),
        (torch.arange(longest) >= torch.tensor(pads).unsqueeze(1)).to(device),
        prompt,
        _joined(samples, device),
        torch.stack([sample.reference for sample in samples]).to(device),
        text_inputs,
    )


def _joined(samples: Sequence[CalibrationSample], device: torch.device) -> list[VisionObservation]:
    """What the vision tower showed of a batch's views, those of one size together."""
    by_size, first = defaultdict(list), 0
    for sample in samples:
        for seen in sample.vision:
            assert seen.entropy is not None
            views = tuple(first + view for view in seen.views)
            by_size[seen.entropy.shape[-1]].append(replace(seen, views=views))
        first += sum(len(seen.views) for seen in sample.vision)
    return [_stacked(group, device) for group in by_size.values()]


def _stacked(group: Sequence[VisionObservation], device: torch.device) -> VisionObservation:
    layers = {
        layer: MeanAttention(
            *(
                torch.cat([getattr(seen.layers[layer], name) for seen in group]).to(device)
                for name in ("weights", "column_means")
            )
        )
        for layer in group[0].layers
    }
    entropy = torch.cat([seen.entropy for seen in group if seen.entropy is not None]).to(device)
    views = tuple(view for seen in group for view in seen.views)
    return VisionObservation(views, layers, entropy, group[0].class_tokens)
