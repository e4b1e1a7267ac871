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
    """Visual tokens from which on pruning pays; between those measured, on a straight line through the logarithms.

    Args:
        line: (visual tokens, speed-up), fewest tokens first.

    Returns:
        0 if it pays from the fewest on; None if it does not with the most.
    """
    if not line or line[-1][1] <= 1:
        return None
    for (fewer, slow), (more, fast) in reversed(list(pairwise(line))):
        if slow <= 1 < fast:
            return exp(log(fewer) - log(slow) / log(fast / slow) * log(more / fewer))
    return 0.0


def advice(sweep: Sweep) -> list[str]:
    """What ``prune`` should be told for images of which sizes: a sentence a batch and retention, those alike as one."""
    found = []
    for batch in sweep.batches:
        said: dict[str, list[float]] = {}
        for retention in sweep.retentions:
            eager, recorded = (sweep.line(batch, retention, variant) for variant in (PRUNED, RECORDED))
            said.setdefault(_advice(eager, recorded), []).append(retention)
        found += [f"Batch {batch}, retention {_listed(own)}: {sentence}." for sentence, own in said.items()]
    return found


def _advice(eager: Sequence[tuple[int, float]], recorded: Sequence[tuple[int, float]]) -> str:
    if not eager and not recorded:
        return "nothing could be measured"
    pays, replayed = break_even(eager), break_even(recorded)
    if replayed is not None and (pays is None or replayed < pays or _lies_above(recorded, eager)):
        return f"prune(…, recordings=Recordings()) {_from(replayed)}"
    untried = "" if recorded else "; recordings= could not be measured"
    if pays is None:
        return f"do not prune, which pays at no size that was measured{untried}"
    return f"prune(…) {_from(pays)}{untried}"


def _lies_above(line: Sequence[tuple[int, float]], other: Sequence[tuple[int, float]]) -> bool:
    """Whether one line lies nowhere below another, where both were measured."""
    known = dict(other)
    return all(speed_up >= known.get(tokens, 0.0) for tokens, speed_up in line)


def _from(tokens: float) -> str:
    return "at every size that was measured" if tokens == 0 else f"from {tokens:,.0f} visual tokens on, none below"


def _listed(numbers: Sequence[float]) -> str:
    *first, last = [f"{number:g}" for number in numbers]
    return f"{', '.join(first)} and {last}" if first else last
