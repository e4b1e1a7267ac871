"""The objective: the discrepancy of the last prompt token's representation with and without pruning.

A trial is the language model's pruned prefill on cached features: no vision tower, no head, no decoding.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.costs import Workload
from multimodal.evidence import VisionEvidence, stacked, token_evidence
from multimodal.families import Modules
from multimodal.runtime import Pruner
from multimodal.runtime.prompt import Image, Prompt
from search.calibration import CalibrationSample


@dataclass(frozen=True)
class Batch:
    """Calibration samples of similar length, padded on the left.

    They stay on the host, and are sent to the model's device one after the other.

    Args:
        embeds: input embeddings ``[B, L, C]``.
        prompt: the images.
        evidence: of all their views.
        reference: of the unpruned model ``[B, C]``.
        text_inputs: what else the text model is given.
        inputs: of the base model, by sample; empty where the vision tower need not run again.
    """

    embeds: Tensor
    prompt: Prompt
    evidence: Sequence[VisionEvidence]
    reference: Tensor
    text_inputs: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Tensor]] = ()

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        if self.embeds.device == device:
            return self

        def moved(value: Any) -> Any:
            return [level.to(device) for level in value] if isinstance(value, list) else value.to(device)

        blocks = self.prompt.blocks
        return Batch(
            self.embeds.to(device),
            replace(self.prompt, blocks=None if blocks is None else blocks.to(device)),
            [each.to(device) for each in self.evidence],
            self.reference.to(device),
            {name: moved(value) for name, value in self.text_inputs.items()},
            self.inputs,
        )


SOFTCAP = "final_logit_softcapping"  # of a config: the largest size of a logit
Measure = Callable[[Tensor, Tensor], Tensor]  # pruned and unpruned hidden states [B, C] -> one number each [B]


def discrepancy_of(hidden: Tensor, reference: Tensor) -> Tensor:
    """1 − cosine similarity.

    Args:
        hidden: of the pruned model ``[B, C]``.
        reference: of the unpruned one ``[B, C]``.

    Returns:
        ``[B]``.
    """
    return 1 - torch.cosine_similarity(hidden.float(), reference.float(), dim=-1)


def next_token_kl(hidden: Tensor, reference: Tensor, modules: Modules) -> Tensor:
    """Kullback–Leibler divergence, in nats, of the pruned model's next-token distribution from the unpruned one's.

    Args:
        hidden: of the pruned model ``[B, C]``.
        reference: of the unpruned one ``[B, C]``.
        modules: of the model, whose head makes logits of hidden states.

    Returns:
        ``[B]``.
    """
    head, cap = modules.model.get_output_embeddings(), getattr(modules.text_model.config, SOFTCAP, None)
    dtype = next(head.parameters()).dtype
    logits = [head(each.to(dtype)).float() for each in (hidden, reference)]
    pruned, unpruned = ((each if cap is None else cap * (each / cap).tanh()).log_softmax(-1) for each in logits)
    return (unpruned.exp() * (unpruned - pruned)).sum(-1)


def measure_named(name: str, modules: Modules) -> Measure:
    """What a search minimises: ``discrepancy`` or ``kl``."""
    return partial(next_token_kl, modules=modules) if name == "kl" else discrepancy_of


class Objective:
    """Evaluates pruning configs on calibration samples.

    Args:
        modules: of the model.
        samples: the calibration samples.
        batch_size: samples prefilled at once.
        seed: of the order in which batches are evaluated, the same for every trial.
        measure: how far a pruned hidden state is from the unpruned one.

    Attributes:
        samples: how many samples a whole evaluation looks at.
        workload: what schedules leave of their prompts' costs.
        order: which sample each one in the batches is, one after the other.
    """

    def __init__(
        self,
        modules: Modules,
        samples: Sequence[CalibrationSample],
        batch_size: int,
        seed: int,
        measure: Measure = discrepancy_of,
    ) -> None:
        self.modules = modules
        self._measure = measure
        prompts = [(sample.layouts, int((~sample.is_visual).sum())) for sample in samples]
        self.samples = len(samples)
        self.workload = Workload(modules.text_model.config, prompts, lambda: [each.varieties for each in samples])
        by_length = sorted(range(len(samples)), key=lambda number: len(samples[number].embeds))
        groups = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        random.Random(seed).shuffle(groups)
        self.order = [number for group in groups for number in group]
        self.batches = [_batch([samples[number] for number in group]) for group in groups]

    def shares(self, config: PruningConfig) -> dict[str, float]:
        """Retention, and prefill FLOPs and KV bytes as shares of the unpruned model's, over all samples."""
        return asdict(self.workload.adapted(config.adaptive).shares(config.schedule))

    @torch.inference_mode()
    def evaluate(
        self, config: PruningConfig, after_batch: Callable[[list[float]], None] = lambda discrepancies: None
    ) -> list[float]:
        """The discrepancy, or what else is measured, of each sample, in :attr:`order`.

        Args:
            config: the config.
            after_batch: told the discrepancies so far; may raise to stop early.
        """
        discrepancies: list[float] = []
        with closing(self._hidden_states(config)) as pairs:  # whatever ends it, the model is as it was
            for hidden, reference in pairs:
                discrepancies += self._measure(hidden, reference).tolist()
                after_batch(discrepancies)
        return discrepancies

    @torch.inference_mode()
    def hidden_states(self, config: PruningConfig) -> tuple[Tensor, Tensor]:
        """The last prompt token's last hidden states, pruned and unpruned, in the samples' own order ``[N, C]``."""
        pairs = list(self._hidden_states(config))
        place = torch.tensor(self.order).argsort().to(pairs[0][0].device)
        hidden, reference = (torch.cat(each)[place] for each in zip(*pairs, strict=True))
        return hidden, reference

    def _hidden_states(self, config: PruningConfig) -> Generator[tuple[Tensor, Tensor], None, None]:
        device = self.modules.text_model.device
        with prune(self.modules.model, config) as pruner:
            for batch in (each.to(device) for each in self.batches):
                yield self.last_states(batch, pruner, config.method.tower is not None), batch.reference

    def last_states(self, batch: Batch, pruner: Pruner | None, from_pixels: bool) -> Tensor:
        """The last prompt token's last hidden states of a batch ``[B, C]``.

        Args:
            batch: one of :attr:`batches`, on the model's device.
            pruner: of the model, from an open :func:`multimodal.prune` block; None: unpruned.
            from_pixels: whether the vision tower runs, too, one sample after the other, as it must where it is pruned
                inside; else the language model alone, on cached features.

        Raises:
            FlowpruneError: the samples were not kept for that.
        """
        if from_pixels:
            return torch.cat([self._read(inputs) for inputs in batch.inputs])
        return self.prefill(batch, pruner)[:, -1]

    def _read(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden state of a sample that the vision tower, too, reads again ``[1, C]``."""
        if not inputs:
            raise FlowpruneError(
                "These calibration samples hold no pixels, which a method that prunes inside the tower needs: "
                "calibrate again with that method."
            )
        device, dtype = self.modules.text_model.device, self.modules.text_model.dtype
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }
        return self.modules.base(**moved, use_cache=False).last_hidden_state[:, -1]

    def prefill(self, batch: Batch, pruner: Pruner | None, cache: Cache | None = None) -> Tensor:
        """The language model's last hidden states of a batch ``[B, L, C]``.

        Args:
            batch: one of :attr:`batches`, on the model's device.
            pruner: of the model, from an open :func:`multimodal.prune` block; None: unpruned.
            cache: filled if given.
        """
        if pruner is not None:
            requests = pruner.config.vision_requests
            layouts = [image.layout for image in batch.prompt.images]
            answers = token_evidence(self.modules.geometry, requests, layouts, batch.evidence)
            pruner.feed(replace(batch.prompt, evidence=answers))
        return self.modules.text_model(
            inputs_embeds=batch.embeds,
            attention_mask=torch.from_numpy(batch.prompt.valid).long().to(batch.embeds.device),
            use_cache=cache is not None,
            **{self.modules.cache_name: cache},
            **batch.text_inputs,
        ).last_hidden_state


def _batch(samples: Sequence[CalibrationSample]) -> Batch:
    longest = max(len(sample.embeds) for sample in samples)
    pads = [longest - len(sample.embeds) for sample in samples]

    def padded(tensors: Sequence[Tensor], value: int = 0, trailing: tuple[int, ...] = ()) -> Tensor:
        if len(tensors) == 1:
            return tensors[0].unsqueeze(0)  # still memory-mapped
        return torch.stack([pad(t, (*trailing, p, 0), value=value) for t, p in zip(tensors, pads, strict=True)])

    text_inputs: dict[str, Any] = {"position_ids": padded([sample.position_ids for sample in samples])}
    if text_inputs["position_ids"].ndim == 3:
        text_inputs["position_ids"] = text_inputs["position_ids"].transpose(0, 1)  # axes first
    deepstack = [sample.deepstack for sample in samples if sample.deepstack is not None]
    if deepstack:
        levels = list(torch.cat(deepstack, dim=1))
        is_visual = padded([sample.is_visual for sample in samples])
        text_inputs |= {"visual_pos_masks": is_visual, "deepstack_visual_embeds": levels}
    blocks = [sample.blocks for sample in samples if sample.blocks is not None]
    owned = [(row, image) for row, sample in enumerate(samples) for image in range(len(sample.layouts))]
    images = [
        Image(samples[row].layouts[image], row, samples[row].visual_index(image).numpy() + pads[row], (number,))
        for number, (row, image) in enumerate(owned)
    ]
    valid = np.arange(longest) >= np.array(pads)[:, None]
    return Batch(
        padded([sample.embeds for sample in samples], trailing=(0, 0)),
        Prompt(valid, images, blocks=padded(blocks, -1) if blocks else None),
        _joined(samples),
        torch.stack([sample.reference for sample in samples]),
        text_inputs,
        [sample.inputs for sample in samples],
    )


def _joined(samples: Sequence[CalibrationSample]) -> list[VisionEvidence]:
    """What the vision tower showed of a batch's views, those of one size together."""
    evidence, first = [], 0
    for sample in samples:
        evidence += [each.shifted(first) for each in sample.evidence]
        first += sum(len(layout.views) for layout in sample.layouts)
    return stacked(evidence)
