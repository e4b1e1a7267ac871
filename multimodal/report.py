"""What pruning did to each sample of a prompt."""

from dataclasses import dataclass

from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.costs import kv_bytes
from multimodal.families import Family
from multimodal.pruned_prompt import PrunedPrompt


@dataclass(frozen=True)
class SampleReport:
    """What happened to one sample of the last prefill.

    Args:
        visual_tokens: of the unpruned prompt.
        kept: visual tokens left after each step, in the unpruned conversation's coordinates, padding not counted.
        retention: visual tokens seen by a layer ÷ original ones, averaged over layers; 1 for a text-only sample.
        kv_bytes, kv_bytes_unpruned: of the prompt's keys and values, all layers.
    """

    visual_tokens: int
    kept: tuple[Tensor, ...]
    retention: float
    kv_bytes: int
    kv_bytes_unpruned: int


def reports(family: Family, config: PruningConfig, pruned: PrunedPrompt) -> list[SampleReport]:
    """One a row of the prompt's batch; waits for the device."""
    text = family.text_model.config
    element_bytes = family.text_model.dtype.itemsize
    layers = text.num_hidden_layers
    reports = []
    for total, visual, kept in pruned.rows():
        left = [visual] * layers
        for step, places in zip(config.schedule, kept, strict=True):
            left[step.layer :] = [len(places)] * (layers - step.layer)
        reports.append(
            SampleReport(
                visual_tokens=visual,
                kept=kept,
                retention=sum(left) / (layers * visual) if visual else 1.0,
                kv_bytes=kv_bytes(text, [total - visual + n for n in left], element_bytes),
                kv_bytes_unpruned=kv_bytes(text, [total] * layers, element_bytes),
            )
        )
    return reports
