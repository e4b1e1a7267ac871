"""The budget: which keep ratios meet it. The last ratio is solved, so every suggestion is feasible and on budget."""

import math
from collections.abc import Callable, Sequence

from multimodal import FlowpruneError, PruningStep
from multimodal.costs import Workload
from multimodal.options import Measure

LEAST = 1e-7  # stands for a keep ratio that leaves what a step leaves in any case
SHARES = {"retention": "retention", "flops": "flops_share", "kv": "kv_share"}


class BudgetUnreachableError(FlowpruneError):
    """A budget below what is left in any case, or above what keeping everything costs."""


Cost = Callable[
    [Sequence[PruningStep]], float
]  # of a schedule, in the budget's measure; never falls as a keep ratio rises


def share_of(workload: Workload, measure: Measure) -> Cost:
    """What a schedule costs as a share of the unpruned model's.

    Args:
        workload: the calibration prompts, which meet the budget together.
        measure: ``retention``, ``flops`` or ``kv``.
    """
    return lambda schedule: float(getattr(workload.shares(schedule), SHARES[measure]))


def last_ratio(target: float, spans: Sequence[int], ratios: Sequence[float]) -> float:
    """Solve the last keep ratio from the retention: Σ spans[j] · Π ratios[..j] = target · Σ spans.

    Args:
        target: retention, in (0, 1].
        spans: language-model layers in each span: from one pruning step to the next, the last to the end.
        ratios: all keep ratios but the last.

    Raises:
        FlowpruneError: no ratio in (0, 1] meets the target.
    """
    if len(ratios) != len(spans) - 1:
        raise FlowpruneError(f"{len(spans)} spans need {len(spans) - 1} ratios before the last, not {len(ratios)}.")
    rest, left = target * sum(spans), 1.0
    for span, ratio in zip(spans, ratios, strict=False):
        left *= ratio
        rest -= span * left
    ratio = rest / (left * spans[-1])
    if not 0 < ratio <= 1 + 1e-9:
        raise FlowpruneError(
            f"With keep ratios {list(ratios)}, no last ratio in (0, 1] meets a retention of {target:g}: it would be "
            f"{ratio:.3g}."
        )
    return min(ratio, 1.0)


def largest_ratio(cost: Callable[[float], float], target: float) -> float:
    """The largest keep ratio whose cost, counted in whole tokens, does not exceed the target.

    Args:
        cost: by keep ratio; never falls as that rises.
        target: the budget.
    """
    low, high = 0.0, 1.0
    if cost(high) <= target:
        return high
    while high - low > LEAST:
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= target else (low, middle)
    return max(low, LEAST)


def ratio_range(cost: Callable[[float, float], float], target: float) -> tuple[float, float]:
    """The keep ratios that a step may take so that later ones can spend the target, in whole tokens, and not more.

    Args:
        cost: by this keep ratio and that of every later step.
        target: the budget.

    Returns:
        Lowest and highest ratio; equal where there is no choice.
    """
    high = largest_ratio(lambda ratio: cost(ratio, LEAST), target)
    wasteful = largest_ratio(lambda ratio: cost(ratio, 1.0), target)
    return min(wasteful + 2 * LEAST, high), high


def check_reachable(measure: Measure, target: float, cost: Cost, layer: int = 0) -> None:
    """Refuse a budget below what is left in any case, or above what keeping everything costs.

    Args:
        measure: of the budget.
        target: the budget.
        cost: of a schedule, in that measure.
        layer: the first that a step may come before.

    Raises:
        BudgetUnreachableError: one sentence with what can be met.
    """
    least, most = (cost([PruningStep(layer=layer, keep_ratio=ratio)]) for ratio in (LEAST, 1.0))
    if target < least:
        raise BudgetUnreachableError(
            f"budget.{measure} is {target:g}, but {least:.4g} is left in any case (a token of each image, newline "
            f"tokens{'' if measure == 'retention' else ', text'}{f', all before layer {layer}' if layer else ''}): "
            f"ask for at least {_rounded_up(least):g}."
        )
    if target > most:
        raise BudgetUnreachableError(
            f"budget.{measure} is {target:g}, but keeping everything costs {most:.4g}: ask for less."
        )


def _rounded_up(value: float, digits: int = 4) -> float:
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale * (1 - 1e-12)) / scale
