"""What some contenders reach in the time that another takes: of one, or of two between which requests are split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timed:
    """A contender, or a mixture of two.

    Args:
        seconds: to the first token, on average.
        scores: what its answers are worth, on average ``[samples]``.
    """

    seconds: float
    scores: NDArray[np.float64]


def at_equal_time(seconds: float, contenders: Sequence[Timed]) -> Timed:
    """The most accurate of what contenders reach in that time on average.

    A share s of the requests answered by one and the rest by another takes the average of their times, weighted by s,
    and is right in the average of their scores. Where none is as fast, the fastest is taken, with its own time.

    Args:
        seconds: to the first token.
        contenders: one at least.
    """
    found = [each for each in contenders if each.seconds <= seconds]
    for fast in found[:]:
        for slow in contenders:
            if slow.seconds > seconds:
                share = (seconds - fast.seconds) / (slow.seconds - fast.seconds)
                found.append(Timed(seconds, (1 - share) * fast.scores + share * slow.scores))
    if not found:
        return min(contenders, key=lambda each: each.seconds)
    return max(found, key=lambda each: float(each.scores.mean()))
