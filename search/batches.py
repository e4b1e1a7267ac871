"""Calibration samples in batches: padded once, and where trials find them, on the device as long as they fit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from multimodal.evidence import VisionEvidence, VisionRequest, stacked, token_evidence
from multimodal.families import Geometry
from multimodal.runtime.prompt import Image, Prompt
from search.calibration import CalibrationSample
from search.room import HELD, free_bytes


@dataclass(frozen=True)
class Batch:
    """Calibration samples of similar length, padded on the left.

    Args:
        numbers: which samples.
        embeds: input embeddings ``[B, L, C]``.
        prompt: the images.
        evidence: of all their views.
        reference: of the unpruned model ``[B, C]``.
        text_inputs: what else the text model is given.
        inputs: of the base model, by sample; empty where the vision tower need not run again.
    """

    numbers: tuple[int, ...]
    embeds: Tensor
    prompt: Prompt
    evidence: Sequence[VisionEvidence]
    reference: Tensor
    text_inputs: Mapping[str, Any]
    inputs: Sequence[Mapping[str, Tensor]] = ()
    _answered: dict[VisionRequest, list[Tensor]] = field(default_factory=dict)

    @cached_property
    def bytes(self) -> int:
        """Of its tensors, and of answers to what is asked of its evidence."""
        evidence = [tensor for each in self.evidence for tensor in each.tensors().values()]
        texts = [
            each for value in self.text_inputs.values() for each in (value if isinstance(value, list) else [value])
        ]
        return sum(tensor.nbytes for tensor in (self.embeds, self.reference, *texts, *evidence, *evidence))

    def answers(self, geometry: Geometry, requests: Iterable[VisionRequest]) -> Mapping[VisionRequest, list[Tensor]]:
        """Answers by visual token; those that the call before gave, too, are not made again.

        Args:
            geometry: of the model.
            requests: what is asked.
        """
        known, asked = self._answered.copy(), list(requests)
        layouts = [image.layout for image in self.prompt.images]
        new = token_evidence(geometry, [each for each in asked if each not in known], layouts, self.evidence)
        self._answered.clear()
        self._answered.update({each: (known | new)[each] for each in asked})
        return dict(self._answered)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        if self.embeds.device == device:
            return self
        # what lies in pinned memory is sent while the host goes on
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same in memory of the host from which a GPU reads by itself."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Any) -> "Batch":
        def changed(value: Any) -> Any:
            return [change(level) for level in value] if isinstance(value, list) else change(value)

        blocks = self.prompt.blocks
        return replace(
            self,
            embeds=change(self.embeds),
            prompt=replace(self.prompt, blocks=None if blocks is None else change(blocks)),
            evidence=[each.mapped(change) for each in self.evidence],
            reference=change(self.reference),
            text_inputs={name: changed(value) for name, value in self.text_inputs.items()},
            _answered={},
        )


def make_batch(samples: Sequence[CalibrationSample], numbers: Sequence[int]) -> Batch:
    """A batch of some of the samples, on the host."""
    samples = [samples[number] for number in numbers]
    longest = max(len(sample.embeds) for sample in samples)
    pads = [longest - len(sample.embeds) for sample in samples]

    def padded(tensors: Sequence[Tensor], value: int = 0, trailing: tuple[int, ...] = ()) -> Tensor:
        if len(tensors) == 1:
            return tensors[0].unsqueeze(0)  # still memory-mapped
        return torch.stack([pad(t, (*trailing, p, 0), value=value) for t, p in zip(tensors, pads, strict=True)])

    valid = np.arange(longest) >= np.array(pads)[:, None]
    text_inputs: dict[str, Any] = {
        "attention_mask": torch.from_numpy(valid).long(),
        "position_ids": padded([sample.position_ids for sample in samples]),
    }
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
    return Batch(
        tuple(numbers),
        padded([sample.embeds for sample in samples], trailing=(0, 0)),
        Prompt(valid, images, blocks=padded(blocks, -1) if blocks else None),
        _joined(samples),
        torch.stack([sample.reference for sample in samples]),
        text_inputs,
        [sample.inputs for sample in samples],
    )


def placed(batches: Iterable[Batch], device: torch.device) -> list[Batch]:
    """Batches where trials find them: on a GPU while they take no more than a share of its free memory, else on the
    host, from where each trial sends them."""
    free = free_bytes(device)
    found, left = [], 0.0 if free is None else HELD * free
    for batch in batches:
        held = batch.bytes <= left
        found.append(batch.to(device) if held else ready(batch, device))
        left -= batch.bytes if held else 0
    return found


def ready(batch: Batch, device: torch.device) -> Batch:
    """A batch that stays on the host, from where a device can be sent it fast."""
    return batch.pinned() if device.type == "cuda" else batch


def _joined(samples: Sequence[CalibrationSample]) -> list[VisionEvidence]:
    """What the vision tower showed of a batch's views, those of one size together."""
    evidence, first = [], 0
    for sample in samples:
        evidence += [each.shifted(first) for each in sample.evidence]
        first += sum(len(layout.views) for layout in sample.layouts)
    return stacked(evidence)
