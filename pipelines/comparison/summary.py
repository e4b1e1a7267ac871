"""What measurements say together: a row a contender, with intervals, and how well label-free measures predict it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from pipelines.comparison.contenders import PUBLISHED, RANDOM, label
from pipelines.comparison.measured import Measured
from pipelines.comparison.statistics import Bootstrap, Interval, by_kind, hard_subset, spearman

PREDICTORS: Mapping[str, Callable[["Row"], float]] = {  # lower is better
    "discrepancy": lambda row: row.discrepancy,
    "next-token KL": lambda row: row.divergence,
    "agreement": lambda row: -row.agreement,
}


@dataclass(frozen=True)
class Row:
    """One contender.

    Args:
        method, variant, budget: who.
        retention, flops_share, kv_share: really spent, of the unpruned model's.
        discrepancy, divergence: means over samples.
        agreement: share of answers equal to the unpruned model's.
        accuracy: share of right answers; where no answer is known, the agreement.
        kinds: accuracy by kind of question.
        hard: accuracy on the hard subset of its budget; None where that is empty.
        milliseconds: to the first token.
        speed_up: of that, beside the unpruned model measured in turn.
        over_random: accuracy minus that of random tokens of the same variant; None for themselves.
        over_other: accuracy minus that of the best other contender at the budget.
        best_share: share of resamples in which it is the best at its budget.
        trials: of its search; None without one.
        remark: what a reader must know.
    """

    method: str
    variant: str
    budget: float | None
    retention: float
    flops_share: float
    kv_share: float
    discrepancy: float
    divergence: float
    agreement: float
    accuracy: Interval
    kinds: Mapping[str, float]
    hard: Interval | None
    milliseconds: float
    speed_up: float
    over_random: Interval | None
    over_other: Interval | None
    best_share: float | None
    trials: int | None
    remark: str

    @property
    def name(self) -> str:
        """In words."""
        return label(self.method, self.variant)


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Args:
        measure: of the budgets.
        unpruned: the model as it is.
        budgets: rows by budget, most first; in each the most accurate first.
        kinds: how many graded samples there are of each kind of question.
        hard: how many samples the hard subset has, by budget.
        samples: graded ones.
        known: whether accuracy is of known answers, or stands for agreement.
        predictors: rank correlation with accuracy of each label-free measure, over all contenders and within each
            budget.
        left_out: who could not take part, and why.
    """

    measure: str
    unpruned: Row
    budgets: Mapping[float, Sequence[Row]]
    kinds: Mapping[str, int]
    hard: Mapping[float, int]
    samples: int
    known: bool
    predictors: Mapping[str, Mapping[str, float | None]]
    left_out: Mapping[str, str]

    @property
    def rows(self) -> list[Row]:
        """Of all contenders, the unpruned model first."""
        return [self.unpruned, *(row for rows in self.budgets.values() for row in rows)]


def summarise(
    unpruned: Measured,
    smaller: Mapping[float, Measured],
    pruned: Sequence[Measured],
    kinds: Sequence[str | None],
    resamples: int,
    seed: int,
    left_out: Mapping[str, str],
) -> Comparison:
    """Put measurements side by side.

    Args:
        unpruned: the model as it is.
        smaller: the model on downscaled pictures, by budget.
        pruned: the other contenders.
        kinds: of question, of each sample.
        resamples: behind each interval.
        seed: of the resamples.
        left_out: who could not take part, and why.
    """
    graded = [n for n, right in enumerate(unpruned.right) if right is not None]
    known = bool(graded)
    graded = graded or list(range(len(unpruned.right)))
    tests = _Tests(graded, known, [kinds[n] for n in graded], Bootstrap(len(graded), resamples, seed))
    budgets, hard = {}, {}
    for budget, small in smaller.items():
        contenders = [small, *(each for each in pruned if each.identity.budget == budget)]
        difficult = hard_subset(unpruned.right, small.right)
        hard[budget] = len(difficult)
        subset = _Subset(difficult, Bootstrap(len(difficult), resamples, seed)) if difficult else None
        rows = _rows(contenders, tests, subset)
        budgets[budget] = sorted(rows, key=lambda row: (-row.accuracy.mean, -row.speed_up))
    counts: dict[str, int] = {}
    for kind in tests.kinds:
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    return Comparison(
        measure=unpruned.identity.measure,
        unpruned=_row(unpruned, tests, None, None, None, None),
        budgets=budgets,
        kinds=dict(sorted(counts.items())),
        hard=hard,
        samples=len(graded),
        known=known,
        predictors=_predictors(budgets),
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Tests:
    """The samples that count: their numbers, whether answers are known, kinds, and how they are resampled."""

    numbers: Sequence[int]
    known: bool
    kinds: Sequence[str | None]
    bootstrap: Bootstrap

    def scores(self, measured: Measured) -> NDArray[np.float64]:
        """1 where a contender is right, or agrees where no answer is known ``[samples]``."""
        values = measured.right if self.known else measured.agrees
        return np.array([float(bool(values[number])) for number in self.numbers])


@dataclass(frozen=True)
class _Subset:
    """The hard samples."""

    numbers: Sequence[int]
    bootstrap: Bootstrap

    def interval(self, measured: Measured) -> Interval:
        return self.bootstrap.interval([float(bool(measured.right[number])) for number in self.numbers])


def _rows(contenders: Sequence[Measured], tests: _Tests, subset: _Subset | None) -> list[Row]:
    """Those of one budget. A downscaled picture that costs what unpruned does is no rival to those on budget."""
    scores = [tests.scores(each) for each in contenders]
    racing = [number for number, each in enumerate(contenders) if each.flops_share < 1]
    best = dict(zip(racing, tests.bootstrap.best_shares([scores[n] for n in racing]), strict=True)) if racing else {}
    random = {
        each.identity.variant: score
        for each, score in zip(contenders, scores, strict=True)
        if each.identity.method == RANDOM
    }
    rows = []
    for number, measured in enumerate(contenders):
        others = [scores[other] for other in racing if other != number]
        rival = max(others, key=lambda score: float(score.mean()), default=None)
        baseline = random.get(measured.identity.variant, random.get(PUBLISHED))
        if measured.identity.method == RANDOM:
            baseline = None
        leads = [
            None if against is None else tests.bootstrap.interval(scores[number] - against)
            for against in (baseline, rival)
        ]
        rows.append(_row(measured, tests, subset, leads[0], leads[1], best.get(number)))
    return rows


def _row(
    measured: Measured,
    tests: _Tests,
    subset: _Subset | None,
    over_random: Interval | None,
    over_other: Interval | None,
    best_share: float | None,
) -> Row:
    who, scores = measured.identity, tests.scores(measured)
    return Row(
        method=who.method,
        variant=who.variant,
        budget=who.budget,
        retention=measured.retention,
        flops_share=measured.flops_share,
        kv_share=measured.kv_share,
        discrepancy=mean(measured.discrepancies),
        divergence=mean(measured.divergences),
        agreement=mean(measured.agrees),
        accuracy=tests.bootstrap.interval(scores),
        kinds=by_kind(scores.tolist(), tests.kinds),
        hard=None if subset is None else subset.interval(measured),
        milliseconds=1000 * measured.seconds,
        speed_up=measured.unpruned_seconds / measured.seconds,
        over_random=over_random,
        over_other=over_other,
        best_share=best_share,
        trials=measured.trials,
        remark=measured.remark,
    )


def _predictors(budgets: Mapping[float, Sequence[Row]]) -> dict[str, dict[str, float | None]]:
    """Rank correlation of each label-free measure with accuracy, 1 where it ranks as accuracy does."""
    groups = {"all": [row for rows in budgets.values() for row in rows]}
    groups |= {f"{budget:g}": list(rows) for budget, rows in budgets.items()}
    return {
        name: {
            group: spearman([-predict(row) for row in rows], [row.accuracy.mean for row in rows])
            for group, rows in groups.items()
        }
        for name, predict in PREDICTORS.items()
    }
