"""The budget: which keep ratios meet it. The last ratio is solved, so every suggestion is feasible and on budget."""

import math
from collections.abc import Callable, Sequence

from multimodal import FlowpruneError
from multimodal.layout import Layout

LEAST = 1e-7  # stands for a keep ratio that leaves what a step leaves in any case


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


def largest_ratio(share: Callable[[float], float], target: float) -> float:
    """The largest keep ratio whose cost, counted in whole tokens, does not exceed the target.

    Args:
        share: cost as a share of the unpruned model's, by keep ratio; never falls as that rises.
        target: the budget, as such a share.
    """
    low, high = 0.0, 1.0
    if share(high) <= target:
        return high
    while high - low > LEAST:
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= target else (low, middle)
    return max(low, LEAST)


def ratio_range(share: Callable[[float, float], float], target: float) -> tuple[float, float]:
    """The keep ratios that a step may take so that later ones can spend the target, in whole tokens, and not more.

    Args:
        share: cost as a share of the unpruned model's, by this keep ratio and that of every later step.
        target: the budget, as such a share.

    Returns:
        Lowest and highest ratio; equal where there is no choice.
    """
    high = largest_ratio(lambda ratio: share(ratio, LEAST), target)
    wasteful = largest_ratio(lambda ratio: share(ratio, 1.0), target)
    return min(wasteful + 2 * LEAST, high), high


def check_reachable(target: float, layouts: Sequence[Layout]) -> None:
    """Refuse a retention outside (0, 1] or below what every step leaves of an image.

    Raises:
        FlowpruneError: one sentence with the smallest that can be met.
    """
    if not 0 < target <= 1:
        raise FlowpruneError(f"budget.retention is {target:g}: it must be in (0, 1].")
    for layout in layouts:
        least = len(layout.newlines) + 1
        if target < least / layout.visual_tokens:
            raise FlowpruneError(
                f"budget.retention is {target:g}, but {least} of an image's {layout.visual_tokens} visual tokens stay "
                f"in any case: ask for at least {math.ceil(least / layout.visual_tokens * 1e4) / 1e4:g}."
            )
