"""What a prefill did, when it is over: all that reports, caches and handing over read of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.plan import Plan
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.prompt import Prompt
from multimodal.runtime.segment import Segment


@dataclass(frozen=True)
class Merged:
    """Tokens of some images that may stand for several, after a step.

    Args:
        rows: their batch rows ``[images]``.
        index: of the tokens in the unpruned prompt ``[images, n]``.
        sizes: how many tokens each stands for ``[images, n]``, float32.
    """

    rows: Sequence[int]
    index: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Outcome:
    """What one prefill did.

    Args:
        config: how it pruned.
        prompt: what was read.
        plan: of it.
        past: what the cache held of the conversation before; None: nothing.
        segments: what layers saw, by the first of them.
        merged: what each step that merges left, by its layer.
    """

    config: PruningConfig
    prompt: Prompt
    plan: Plan
    past: Ledger | None
    segments: Mapping[int, Segment]
    merged: Mapping[int, Sequence[Merged]] = field(default_factory=dict)
