"""The comparison's statistics: numbers in, numbers out; no model, no files, no pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

LEVEL = 0.95  # of every interval
RIGHT = 0.5  # score from which on an answer is called right
FEWEST = 4  # contenders of which a rank correlation says anything


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile interval over resamples."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether nothing was shown to differ."""
        return self.low <= 0 <= self.high


class Bootstrap:
    """Resamples of the samples, the same for all that is compared: what is paired stays paired.

    Args:
        samples: how many there are.
        resamples: how many are drawn.
        seed: of the draw.
    """

    def __init__(self, samples: int, resamples: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._weights = generator.multinomial(samples, [1 / samples] * samples, size=resamples) / samples

    def means(self, values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of each resample ``[resamples]`` of one number a sample ``[samples]``."""
        return np.asarray(self._weights @ np.asarray(values, dtype=float))

    def interval(self, values: Sequence[float] | NDArray[np.float64]) -> Interval:
        """Of the mean of one number a sample ``[samples]``, such as the difference of two contenders."""
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(self.means(values), [tail, 1 - tail])
        return Interval(float(np.mean(values)), float(low), float(high))

    def best_shares(self, values: Sequence[Sequence[float] | NDArray[np.float64]]) -> list[float]:
        """For each of several contenders ``[contenders][samples]``, the share of resamples in which it is the best;
        those that tie share."""
        means = np.array([self.means(each) for each in values])
        best = np.isclose(means, means.max(0), rtol=0, atol=1e-12)
        return [float(share) for share in (best / best.sum(0)).mean(1)]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties at their mean rank; None where there are too few, or all of one are alike."""
    if len(first) < FEWEST or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def hard_subset(unpruned: Sequence[float | None], smaller: Sequence[float | None]) -> list[int]:
    """Numbers of the samples that need more than a small picture: right unpruned, wrong with a picture that was
    downscaled to as many tokens as are kept.

    Args:
        unpruned: what each answer of the unpruned model is worth, right from a half on; None where that is not known.
        smaller: the same with downscaled pictures.
    """
    pairs = enumerate(zip(unpruned, smaller, strict=True))
    return [n for n, (full, small) in pairs if full is not None and small is not None and full >= RIGHT > small]


def by_kind(scores: Sequence[float], kinds: Sequence[str | None]) -> Mapping[str, float]:
    """Mean score of the samples of each kind of question."""
    found: dict[str, list[float]] = {}
    for score, kind in zip(scores, kinds, strict=True):
        if kind is not None:
            found.setdefault(kind, []).append(score)
    return {kind: mean(each) for kind, each in sorted(found.items())}
