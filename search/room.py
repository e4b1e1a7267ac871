"""How many samples one prefill reads, and how many of them stay on the device: as its memory allows."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PretrainedConfig

from multimodal.costs import head_dim, key_heads

BatchSize = int | Literal["auto"]

ROWS = 16  # auto where free memory is not known, as on a CPU, which computes no faster with more
TOKENS = 2**16  # auto on a GPU, unpruned: a tenth of them keep it busy for longer than the host takes to launch
PREFILL, HELD = 0.5, 0.25  # of a GPU's free memory: what a prefill may take, and samples that stay there


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a CUDA device, what torch holds unused included; None: not known."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def prefill_bytes(text_config: PretrainedConfig, rows: int, tokens: int, element_bytes: int) -> int:
    """A bound on what an unpruned prefill of padded prompts takes at once, and so on a pruned one; no cache is filled.

    What a selection itself compares, such as tokens with each other, is not in it.

    Args:
        text_config: of the language model.
        rows: prompts.
        tokens: of each, padding included.
        element_bytes: of the model's dtype.
    """
    heads, width = text_config.num_attention_heads, text_config.hidden_size
    queries, keys = heads * head_dim(text_config), key_heads(text_config) * head_dim(text_config)
    states = 4 * width + 8 * width // element_bytes  # residual, gathered and normed ones, twice in float32
    layer = states + max(5 * queries + 4 * keys, 4 * text_config.intermediate_size)
    pairs = 3 * element_bytes + 2  # masks: what is seen, and the additive one of this segment and the last
    if text_config._attn_implementation == "eager":
        pairs += heads * (4 + 2 * element_bytes)
    return rows * tokens * (layer * element_bytes + tokens * pairs)


def grouped(
    lengths: Sequence[int],
    batch_size: BatchSize,
    device: torch.device,
    text_config: PretrainedConfig,
    element_bytes: int,
) -> list[list[int]]:
    """Samples of similar length together, as many as one prefill reads.

    Args:
        lengths: tokens of each sample, unpruned.
        batch_size: a number; or ``auto``: as many as fill a GPU and fit into half of its free memory.
        device: of the language model.
        text_config: of the language model.
        element_bytes: of its dtype.
    """
    free = free_bytes(device) if batch_size == "auto" else None
    rows = batch_size if batch_size != "auto" else ROWS if free is None else len(lengths)
    groups: list[list[int]] = [[]]
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        own, longest = len(groups[-1]) + 1, lengths[number]  # the others are not longer
        full = own > rows
        if free is not None:
            taken = prefill_bytes(text_config, own, longest, element_bytes)
            full = own * longest > TOKENS or taken > PREFILL * free
        if full and groups[-1]:
            groups.append([])
        groups[-1].append(number)
    return groups
