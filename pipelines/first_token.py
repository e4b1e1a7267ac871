"""The time to the first token, as a user waits for it: tower, evidence, selection, prefill and head, one prompt."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from multimodal import PruningConfig, prune
from multimodal.benchmark.stopwatch import Stopwatch

Inputs = Mapping[str, Tensor]


@torch.inference_mode()
def seconds_to_first_token(
    model: Any, plain: Sequence[Inputs], theirs: Sequence[Inputs], config: PruningConfig | None, repeats: int
) -> tuple[float, float]:
    """Seconds to the first token, unpruned and of a contender, in turn: medians by prompt, then the mean.

    Args:
        model: a stock transformers model.
        plain: the processor's output for some prompts, each alone.
        theirs: the same prompts as the contender gets them.
        config: how the contender is pruned; None: not at all.
        repeats: times that each is measured.
    """
    watch = Stopwatch(model.device)
    for _ in range(1 + repeats):
        for number, (unpruned, own) in enumerate(zip(plain, theirs, strict=True)):
            watch.time(f"unpruned {number}", partial(_read, model, unpruned))
            with prune(model, config) if config else nullcontext():
                watch.time(f"own {number}", partial(_read, model, own))
    medians, prompts = watch.medians(), range(len(plain))
    before, after = (sum(medians[f"{which} {n}"] for n in prompts) / len(plain) for which in ("unpruned", "own"))
    return before, after


def _read(model: Any, inputs: Inputs) -> None:
    model(**inputs, use_cache=True, logits_to_keep=1)
