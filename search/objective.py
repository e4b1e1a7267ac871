"""The objective: the discrepancy of the last prompt token's representation with and without pruning.

A trial is the language model's pruned prefill on cached features: no vision tower, no head, no decoding.
"""

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import Tensor
from transformers import Cache

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.costs import Workload
from multimodal.families import Modules
from multimodal.runtime import Pruner
from search.batches import Batch, make_batch, placed, ready
from search.calibration import CalibrationSample
from search.room import BatchSize, grouped

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
        batch_size: samples prefilled at once; or ``auto`` (:func:`search.room.grouped`).
        seed: of the order in which batches are evaluated, the same for every trial.
        measure: how far a pruned hidden state is from the unpruned one.

    Attributes:
        samples: how many samples a whole evaluation looks at.
        workload: what schedules leave of their prompts' costs.
        device: of the language model.
        order: which sample each one in the batches is, one after the other.
        batches: on the model's device, or on the host; one that turns out too large for the device is halved.
    """

    def __init__(
        self,
        modules: Modules,
        samples: Sequence[CalibrationSample],
        batch_size: BatchSize,
        seed: int,
        measure: Measure = discrepancy_of,
    ) -> None:
        self.modules = modules
        self._measure = measure
        prompts = [(sample.layouts, int((~sample.is_visual).sum())) for sample in samples]
        self.samples = len(samples)
        self.workload = Workload(modules.text_model.config, prompts, lambda: [each.varieties for each in samples])
        self._samples, self.device = samples, modules.text_model.device
        lengths, element = [len(sample.embeds) for sample in samples], modules.text_model.dtype.itemsize
        groups = grouped(lengths, batch_size, self.device, modules.text_model.config, element)
        random.Random(seed).shuffle(groups)
        self.order = [number for group in groups for number in group]
        self.batches = placed((make_batch(samples, group) for group in groups), self.device)

    @property
    def placement(self) -> str:
        """Where the samples are, and how many prefills a trial is, in words."""
        held = sum(batch.bytes for batch in self.batches if batch.embeds.device == self.device)
        prefills, most = len(self.batches), max(len(batch.numbers) for batch in self.batches)
        return (
            f"a trial is {prefills} {'prefill' if prefills == 1 else 'prefills'} of at most {most} samples, "
            f"{held / 2**20:,.0f} MiB of which stay on {self.device}"
        )

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
        with prune(self.modules.model, config) as pruner:
            done = 0
            while done < len(self.batches):
                while (found := self._tried(self.batches[done], pruner)) is None:
                    self._halve(done)
                yield found
                done += 1

    def _tried(self, batch: Batch, pruner: Pruner) -> tuple[Tensor, Tensor] | None:
        """A batch's last hidden states, pruned and unpruned; None if the device has no room for it."""
        try:
            batch = batch.to(self.device)
            return self.last_states(batch, pruner, pruner.config.method.tower is not None), batch.reference
        except torch.OutOfMemoryError:
            return None

    def _halve(self, place: int) -> None:
        """Put two batches in place of one that the device has no room for."""
        numbers, device = self.batches[place].numbers, self.device
        if len(numbers) == 1:
            raise FlowpruneError(
                f"The prefill of one calibration sample of {self.batches[place].embeds.shape[1]} tokens does not fit "
                f"into the memory of {device}: free some of it, load the model in a smaller dtype, or search with "
                "smaller images."
            )
        middle = len(numbers) // 2
        halves = [make_batch(self._samples, half) for half in (numbers[:middle], numbers[middle:])]
        self.batches[place : place + 1] = [ready(half, device) for half in halves]
        if device.type == "cuda":
            torch.cuda.empty_cache()

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
            answers = batch.answers(self.modules.geometry, pruner.config.vision_requests)
            pruner.feed(replace(batch.prompt, evidence=answers))
        return self.modules.text_model(
            inputs_embeds=batch.embeds,
            use_cache=cache is not None,
            **{self.modules.cache_name: cache},
            **batch.text_inputs,
        ).last_hidden_state
