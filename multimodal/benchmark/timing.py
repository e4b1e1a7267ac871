"""``generate()`` of several variants in turn, and what each takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList

from multimodal.benchmark.inputs import Inputs
from multimodal.benchmark.parts import Timeline
from multimodal.benchmark.stopwatch import Stopwatch
from multimodal.benchmark.variants import Variant
from multimodal.errors import FlowpruneError, reason_of


@dataclass(frozen=True)
class Effort:
    """How thoroughly is measured.

    Args:
        repeats: times that each first token is measured; decoding, half as often.
        new_tokens: that decoding is timed over; 0: it is not timed.
        until: of :func:`time.monotonic`, when to stop repeating; None: never.
    """

    repeats: int = 7
    new_tokens: int = 16
    until: float | None = None

    @property
    def over(self) -> bool:
        """Whether no time is left."""
        return self.until is not None and time.monotonic() > self.until


@dataclass(frozen=True)
class Timed:
    """Seconds of a call, or why there are none.

    Args:
        first: to the first token.
        token: of one more.
        failed: in words, what went wrong.
    """

    first: float = 0.0
    token: float | None = None
    failed: str | None = None


def generated(
    model: Any, prompts: Sequence[Inputs], variant: Variant, tokens: int, **others: Any
) -> Callable[[], None]:
    """A call that answers some prompts with so many tokens each."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, **variant.options, **others}

    def call() -> None:
        for inputs in prompts:
            model.generate(**inputs, **options)

    return call


def decoded(model: Any, prompts: Sequence[Inputs], variant: Variant, tokens: int) -> float:
    """Answer some prompts, and return the seconds that each token after the first took, summed over the prompts."""
    seconds = 0.0
    for inputs in prompts:
        timeline = Timeline(model.device)

        def after(ids: Tensor, scores: Tensor, timeline: Timeline = timeline) -> Tensor:
            """Called after each token: the second part of the timeline begins with the first."""
            if len(timeline) == 1:
                timeline.begin("decoding")
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        timeline.begin("first token")
        generated(model, [inputs], variant, 1 + tokens, stopping_criteria=StoppingCriteriaList([after]))()
        seconds += timeline.stop()["decoding"] / tokens
    return seconds


def time_variants(
    model: PreTrainedModel, prompts: Sequence[Inputs], ways: Sequence[Variant], effort: Effort
) -> Mapping[str, Timed]:
    """Time variants in turn: medians, means over the prompts. One that fails says why and is left out from there on.

    Args:
        model: a stock transformers model.
        prompts: batches that are read one after another.
        ways: of running it.
        effort: how thoroughly.
    """
    watch, failed = Stopwatch(model.device), dict[str, str]()
    for turn in range(1 + effort.repeats):
        if turn > 1 and effort.over:
            break
        for way in [each for each in ways if each.name not in failed]:
            try:
                with way.opened():
                    watch.time(f"{way.name} first", generated(model, prompts, way, 1))
                    if effort.new_tokens and turn <= 1 + effort.repeats // 2:
                        watch.note(f"{way.name} token", decoded(model, prompts, way, effort.new_tokens))
            except Exception as error:  # whatever a device or a library refuses is this variant's alone
                failed[way.name] = why(error)
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
    found = {name: Timed(failed=reason) for name, reason in failed.items()}
    for name in [way.name for way in ways if way.name not in failed]:
        first, token = (watch.seconds(f"{name} {what}") for what in ("first", "token"))
        found[name] = Timed(median(first) / len(prompts), median(token) / len(prompts) if token else None)
    return found


def why(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, torch.OutOfMemoryError):
        return "does not fit into the device's memory"
    return (
        str(error).rstrip(".") if isinstance(error, FlowpruneError) else f"{type(error).__name__}: {reason_of(error)}"
    )
