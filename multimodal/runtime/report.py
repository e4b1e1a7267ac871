"""What pruning did to each sample of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.costs import kv_bytes
from multimodal.plan import RowPlan
from multimodal.runtime.outcome import Merged, Outcome


@dataclass(frozen=True)
class SampleReport:
    """What happened to one sample of the last prefill.

    Args:
        visual_tokens: of the unpruned prompt.
        kept: visual tokens left after each step, in the unpruned conversation's coordinates, padding not counted.
        sizes: how many tokens each of :attr:`kept` stands for, float32; 1 where nothing merged into it.
        places: for each place of the outputs, the one in the unpruned padded prompt that it belongs to ``[L']``; −1
            where padded, on the left. Outputs of a pruned prefill are those of the tokens that are left.
        retention: visual tokens seen by a layer ÷ original ones, averaged over layers; 1 for a text-only sample.
        kv_bytes, kv_bytes_unpruned: of the prompt's keys and values, all layers.
    """

    visual_tokens: int
    kept: tuple[Tensor, ...]
    sizes: tuple[Tensor, ...]
    places: Tensor
    retention: float
    kv_bytes: int
    kv_bytes_unpruned: int


def reports(text: PretrainedConfig, element_bytes: int, read: Outcome) -> list[SampleReport]:
    """One a row of the prompt's batch; waits for the device.

    Args:
        text: config of the language model.
        element_bytes: of a cache element.
        read: what a prefill did.
    """
    valid, is_visual = torch.from_numpy(read.prompt.valid), torch.from_numpy(read.prompt.is_visual)
    unpadded = valid.cumsum(1) - 1  # where each token would be without padding
    before = torch.zeros(len(valid), dtype=torch.long, device="cpu")
    if read.past is not None:
        before = read.past.read - read.past.padding.cpu()
    segments = [read.segments[step.layer] for step in read.config.schedule]
    index = [segment.index.cpu().where(segment.valid.cpu(), -1) for segment in segments]
    sizes = [_sizes(read.merged.get(step.layer, ()), valid.shape) for step in read.config.schedule]
    found = []
    for row, plan in enumerate(read.plan.rows):
        left = [each[row][each[row] >= 0] for each in index]
        kept = tuple(before[row] + unpadded[row][each[is_visual[row][each]]] for each in left)
        met = RowPlan(plan.text_tokens, plan.visual_tokens, tuple(map(len, kept)), plan.schedule, plan.layers)
        found.append(
            SampleReport(
                visual_tokens=plan.visual_tokens,
                kept=kept,
                sizes=tuple(each[row][own[is_visual[row][own]]] for each, own in zip(sizes, left, strict=True)),
                places=index[-1][row],
                retention=met.retention,
                kv_bytes=kv_bytes(text, met.tokens_by_layer, element_bytes),
                kv_bytes_unpruned=kv_bytes(text, [plan.text_tokens + plan.visual_tokens] * plan.layers, element_bytes),
            )
        )
    return found


def _sizes(merged: Sequence[Merged], shape: torch.Size) -> Tensor:
    """How many tokens each token of the unpruned prompt stands for after a step ``[B, L]``."""
    sizes = torch.ones(shape, dtype=torch.float32, device="cpu")
    for own in merged:
        sizes[torch.tensor(own.rows, device="cpu").unsqueeze(1), own.index.cpu()] = own.sizes.cpu()
    return sizes
