"""The objective: the discrepancy of the last prompt token's representation with and without pruning.

A trial is the language model's pruned prefill on cached features: no vision tower, no head, no decoding.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from transformers import Cache

from multimodal import PruningConfig, prune
from multimodal.costs import Workload
from multimodal.families import Family
from multimodal.observation import MeanAttention, VisionObservation
from multimodal.prompt import Prompt, importance_maps, locate_images
from multimodal.pruner import Pruner
from search.calibration import CalibrationSample


@dataclass(frozen=True)
class Batch:
    """Calibration samples of similar length, padded on the left and on the model's device."""

    embeds: Tensor
    valid: Tensor
    prompt: Prompt
    vision: VisionObservation
    reference: Tensor


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
            position_ids=(batch.valid.cumsum(1) - 1).clamp(min=0),
            use_cache=cache is not None,
            **{self.family.cache_name: cache},
        ).last_hidden_state


def _batch(family: Family, samples: Sequence[CalibrationSample]) -> Batch:
    device, longest = family.text_model.device, max(len(sample.embeds) for sample in samples)
    pads = [longest - len(sample.embeds) for sample in samples]
    embeds = torch.stack(
        [torch.nn.functional.pad(s.embeds, (0, 0, pad, 0)) for s, pad in zip(samples, pads, strict=True)]
    )
    is_visual = torch.stack(
        [torch.nn.functional.pad(s.is_visual, (pad, 0)) for s, pad in zip(samples, pads, strict=True)]
    )
    valid = torch.arange(longest) >= torch.tensor(pads).unsqueeze(1)
    layouts = [layout for sample in samples for layout in sample.layouts]
    return Batch(
        embeds.to(device),
        valid.to(device),
        locate_images(is_visual, layouts, maps=None),
        _joined(samples, device),
        torch.stack([sample.reference for sample in samples]).to(device),
    )


def _joined(samples: Sequence[CalibrationSample], device: torch.device) -> VisionObservation:
    """What the vision tower showed of a batch's tiles, in order."""
    layers = {
        layer: MeanAttention(
            torch.cat([sample.attention[layer].weights for sample in samples]).to(device),
            torch.cat([sample.attention[layer].column_means for sample in samples]).to(device),
        )
        for layer in samples[0].attention
    }
    entropy = torch.cat([sample.entropy for sample in samples]).to(device)
    return VisionObservation(layers, entropy, samples[0].class_tokens)
