"""Where pruning pays: the speed-up of the first token over image size, batch and retention, and what follows."""

from collections.abc import Sequence
from itertools import pairwise
from math import exp, log

from pydantic import BaseModel, ConfigDict

from multimodal.benchmark.variants import PRUNED, RECORDED


class Cell(BaseModel):
    """One image size, batch and retention.

    Args:
        image: size in pixels, in words.
        visual_tokens: of a prompt.
        batch: prompts that are read together.
        retention: of the pruned variants.
        unpruned: seconds to the first token; None: it does not fit.
        seconds: of each pruned variant that did not fail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str
    visual_tokens: int
    batch: int
    retention: float
    unpruned: float | None
    seconds: dict[str, float]

    def speed_up(self, variant: str) -> float | None:
        """Of a variant; None: it or the unpruned model failed."""
        if self.unpruned is None or variant not in self.seconds:
            return None
        return self.unpruned / self.seconds[variant]


class Sweep(BaseModel):
    """Every combination that was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    cells: list[Cell]

    @property
    def batches(self) -> list[int]:
        """Those measured, smallest first."""
        return sorted({cell.batch for cell in self.cells})

    @property
    def retentions(self) -> list[float]:
        """Those measured, largest first."""
        return sorted({cell.retention for cell in self.cells}, reverse=True)

    def line(self, batch: int, retention: float, variant: str) -> list[tuple[int, float]]:
        """(visual tokens, speed-up) of a variant, fewest tokens first."""
        own = [cell for cell in self.cells if (cell.batch, cell.retention) == (batch, retention)]
        points = [(cell.visual_tokens, cell.speed_up(variant)) for cell in own]
        return sorted((tokens, speed_up) for tokens, speed_up in points if speed_up is not None)


def break_even(line: Sequence[tuple[float, float]]) -> float | None:
    """Visual tokens from which on pruning pays, between those measured on a line through log tokens.

    Args:
        line: (visual tokens, speed-up), fewest tokens first.

    Returns:
        0 if it pays from the fewest on; None if it does not with the most.
    """
    if not line or line[-1][1] <= 1:
        return None
    for (fewer, slow), (more, fast) in reversed(list(pairwise(line))):
        if slow <= 1 < fast:
            return exp(log(fewer) + (1 - slow) / (fast - slow) * (log(more) - log(fewer)))
    return 0.0


def advice(sweep: Sweep, batch: int, retention: float) -> str:
    """One sentence: what ``prune`` should be told for images of which sizes."""
    eager, recorded = (sweep.line(batch, retention, variant) for variant in (PRUNED, RECORDED))
    where = f"Batch {batch} at a retention of {retention:g}:"
    if not eager and not recorded:
        return f"{where} nothing could be measured."
    pays, replayed = break_even(eager), break_even(recorded)
    if replayed is not None and (pays is None or replayed < pays or _faster(recorded, eager)):
        return f"{where} prune(…, recordings=Recordings()) {_from(replayed)}."
    if pays is None:
        untried = "" if recorded else "; recordings= could not be measured"
        return f"{where} do not prune, which pays at no size that was measured{untried}."
    return f"{where} prune(…) {_from(pays)}."


def _faster(line: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> bool:
    """Whether a line lies above another where both were measured."""
    known = dict(other)
    return all(speed_up >= known.get(tokens, 0.0) for tokens, speed_up in line)


def _from(tokens: float) -> str:
    return "at every size that was measured" if tokens == 0 else f"from {tokens:,.0f} visual tokens on; below, do not"
