"""What a run of the benchmark found: plain JSON, which later runs are compared with."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from multimodal.benchmark.device import Peaks
from multimodal.benchmark.profiling import Profile
from multimodal.benchmark.sweep import Sweep


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Strict):
    """One way of running a model on one batch. Seconds, bytes; of a batch.

    Args:
        variant: of :mod:`multimodal.benchmark.variants`.
        failed: why there are no figures.
        note: what a reader of the figures must know.
        first_token: until ``generate(max_new_tokens=1)`` has returned.
        parts: of it; they add up to it.
        decoding: of one more token.
        first_token_bound, decoding_bound: the least that FLOPs and bytes allow on a device of these peaks.
        first_token_host: launches and waits of the first token, and for how long the device works.
        decoding_busy: for how long the device works for one more token.
        peak_bytes: of memory beside weights, inputs and recordings; None where the device does not tell.
        recorded_bytes: that recordings hold.
    """

    variant: str
    failed: str | None = None
    note: str | None = None
    first_token: float | None = None
    parts: dict[str, float] = {}
    decoding: float | None = None
    first_token_bound: float | None = None
    decoding_bound: float | None = None
    first_token_host: Profile | None = None
    decoding_busy: float | None = None
    peak_bytes: int | None = None
    recorded_bytes: int | None = None


class Case(_Strict):
    """A model and a batch of prompts.

    Args:
        model: its name.
        image: size of the images in pixels, in words.
        batch: prompts that are read together.
        visual_tokens, text_tokens: of a prompt, mean.
        retention: of the pruned variants.
        rows: one a variant, the unpruned model first.
    """

    model: str
    image: str
    batch: int
    visual_tokens: float
    text_tokens: float
    retention: float
    rows: list[Row]

    def row(self, variant: str) -> Row:
        """That of a variant."""
        return next(row for row in self.rows if row.variant == variant)


class Report(_Strict):
    """What one run found on one device.

    Args:
        device: its name.
        kind: of it; names the table that a run is compared with.
        dtype, attention: of the models.
        torch, transformers: versions.
        peaks: of the device.
        arguments: of the command line that made it.
        cases: what was measured.
        sweep: where pruning pays; None: not asked for.
        left_out: models that were not measured, and why, a sentence each.
    """

    device: str
    kind: str
    dtype: str
    attention: str
    torch: str
    transformers: str
    peaks: Peaks
    arguments: dict[str, Any] = {}
    cases: list[Case] = []
    sweep: Sweep | None = None
    left_out: list[str] = []
