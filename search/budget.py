"""The budget: which keep ratios meet it. The last ratio is solved, so every suggestion is feasible and on budget."""

from collections.abc import Callable, Sequence

from multimodal import FlowpruneError


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
    rest, left = _rest(target, spans, ratios)
    ratio = rest / (left * spans[-1])
    if not 0 < ratio <= 1 + 1e-9:
        raise FlowpruneError(
            f"With keep ratios {list(ratios)}, no last ratio in (0, 1] meets a retention of {target:g}: it would be "
            f"{ratio:.3g}."
        )
    return min(ratio, 1.0)


def largest_ratio(share: Callable[[float], float], target: float) -> float:
    """The largest last keep ratio whose cost, counted in whole tokens, does not exceed the target.

    Args:
        share: cost as a share of the unpruned model's, by last keep ratio; never falls as that rises.
        target: the budget, as such a share.
    """
    low, high = 0.0, 1.0
    if share(high) <= target:
        return high
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) <= target else (low, middle)
    return max(low, 1e-7)


def ratio_range(target: float, spans: Sequence[int], ratios: Sequence[float], least: float) -> tuple[float, float]:
    """The keep ratios that the next step may take so that later ones can still meet the target.

    Args:
        target: retention, in (0, 1].
        spans: layers in each span.
        ratios: keep ratios chosen so far, fewer than spans − 1.
        least: the smallest share of the original tokens that any span may see.

    Returns:
        Lowest and highest ratio; equal where there is no choice.
    """
    rest, left = _rest(target, spans, ratios)
    here, later = spans[len(ratios)], sum(spans[len(ratios) + 1 :])
    low = max(rest / (left * (here + later)), least / left)
    high = min(1.0, (rest - least * later) / (left * here))
    return min(low, 1.0), max(low, high)


def _rest(target: float, spans: Sequence[int], ratios: Sequence[float]) -> tuple[float, float]:
    """Layer-tokens not yet spent, and the share of tokens left, both relative to the original tokens."""
    rest, left = target * sum(spans), 1.0
    for span, ratio in zip(spans, ratios, strict=False):
        left *= ratio
        rest -= span * left
    return rest, left


def check_reachable(target: float, visual_tokens: int) -> None:
    """Refuse a retention outside (0, 1] or below one visual token.

    Raises:
        FlowpruneError: one sentence with the smallest that can be met.
    """
    if not 0 < target <= 1:
        raise FlowpruneError(f"budget.retention is {target:g}: it must be in (0, 1].")
    if target * visual_tokens < 1:
        raise FlowpruneError(
            f"budget.retention is {target:g}, less than one of an image's {visual_tokens} visual tokens: "
            f"ask for at least {1 / visual_tokens:.3g}."
        )
