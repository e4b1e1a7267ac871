"""What a recorded prefill tells of itself, packed into two tensors that are copied before the next replay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from multimodal.config import PruningConfig
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.outcome import Merged, Outcome
from multimodal.runtime.prefill import Prefill
from multimodal.runtime.prompt import Prompt
from multimodal.runtime.segment import Segment


@dataclass(frozen=True)
class Form:
    """How what is told lies in the two tensors: its nesting, and the shape of each tensor, None for none.

    Args:
        spec: the nesting.
        shapes: of each tensor, and whether it is of whole numbers.
        rows: batch rows of the images of each group that a step merged, by its layer.
    """

    spec: TreeSpec
    shapes: Sequence[tuple[torch.Size, bool] | None]
    rows: Mapping[int, Sequence[Sequence[int]]]


def told(reading: Prefill, offset: Tensor) -> tuple[Tensor, Tensor, Form]:
    """What a prefill tells: of whole numbers and of real ones ``[numbers]``, and how they lie there.

    Args:
        reading: the prefill.
        offset: how far its prompt was moved to the right ``[1]``; what is told is of the prompt as it was.
    """
    merged = reading.outcome.merged
    tree: dict[str, Any] = {
        "segments": {
            start: ((segment.index - offset).where(segment.valid, -1), segment.bias)
            for start, segment in reading.segments.items()
        },
        "merged": {start: [(own.index - offset, own.sizes) for own in groups] for start, groups in merged.items()},
        "padding": reading.placed.padding - offset,
        "following": reading.following,
        "shift": reading.shift,
    }
    leaves, spec = tree_flatten(tree)
    shapes = [None if leaf is None else (leaf.shape, not leaf.is_floating_point()) for leaf in leaves]
    own = [leaf.flatten() for leaf in leaves if leaf is not None]
    whole = torch.cat([leaf for leaf in own if not leaf.is_floating_point()])
    real = torch.cat([leaf for leaf in own if leaf.is_floating_point()] or [torch.zeros(0, device=whole.device)])
    rows = {start: [own.rows for own in groups] for start, groups in merged.items()}
    return whole, real, Form(spec, shapes, rows)


def understood(
    whole: Tensor, real: Tensor, form: Form, prompt: Prompt, config: PruningConfig, layers: int
) -> tuple[Outcome, Ledger]:
    """What a prefill did, and what its layers hold, padded as the eager path pads.

    Args:
        whole, real, form: what was told.
        prompt: what was read.
        config: how it was pruned.
        layers: of the language model.
    """
    tree, plan = tree_unflatten(_parts(whole, real, form), form.spec), prompt.plan(config.schedule, layers)
    steps, length, segments = {step.layer for step in config.schedule}, prompt.valid.shape[1], {}
    for start, (index, bias) in tree["segments"].items():
        lengths = plan.lengths(start)
        width = max(lengths) if start in steps else length
        index, bias = index[:, -width:], None if bias is None else bias[:, -width:]
        segments[start] = Segment(index, index >= 0, lengths, start in steps, bias)
    merged = {
        start: [Merged(rows, *own) for rows, own in zip(form.rows[start], groups, strict=True)]
        for start, groups in tree["merged"].items()
    }
    keys = {start: segment.keys(0) for start, segment in segments.items()}
    ledger = Ledger(length, 0, keys, tree["padding"], tree["following"], tree["shift"])
    return Outcome(config, prompt, plan, None, segments, merged), ledger


def _parts(whole: Tensor, real: Tensor, form: Form) -> list[Tensor | None]:
    parts: list[Tensor | None] = []
    first = {True: 0, False: 0}
    for kind in form.shapes:
        if kind is None:
            parts.append(None)
            continue
        shape, is_whole = kind
        start, size = first[is_whole], shape.numel()
        parts.append((whole if is_whole else real)[start : start + size].view(shape))
        first[is_whole] = start + size
    return parts
