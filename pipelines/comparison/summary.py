"""From measurements to what they say together: intervals, leads, and how well label-free measures predict accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from pipelines.comparison.contenders import PUBLISHED, RANDOM, SERVABLE, TUNED
from pipelines.comparison.equal_time import Timed, at_equal_time
from pipelines.comparison.measurement import Measured
from pipelines.comparison.rows import Comparison, Row
from pipelines.comparison.statistics import Bootstrap, Interval, by_kind, hard_subset, spearman

PREDICTORS: Mapping[str, Callable[[Row], float]] = {  # lower is better
    "discrepancy": lambda row: row.discrepancy,
    "next-token KL": lambda row: row.divergence,
    "agreement": lambda row: -row.agreement,
}


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
    tests = _Tests(graded, known, [kinds[n] for n in graded], Bootstrap(len(graded), resamples, seed), unpruned.seconds)
    budgets, hard = {}, {}
    for budget, small in smaller.items():
        contenders = [small, *(each for each in pruned if each.identity.budget == budget)]
        difficult = hard_subset(unpruned.right, small.right)
        hard[budget] = len(difficult)
        subset = _Subset(difficult, Bootstrap(len(difficult), resamples, seed)) if difficult else None
        rows = _rows(contenders, tests, subset, _unrestricted(unpruned, pruned, tests))
        budgets[budget] = sorted(rows, key=lambda row: (-row.accuracy.mean, -row.speed_up))
    counts: dict[str, int] = {}
    for kind in tests.kinds:
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    return Comparison(
        measure=unpruned.identity.measure,
        unpruned=replace(
            _row(unpruned, tests, None, None, None, None, None), speed_up=1.0, milliseconds=1000 * unpruned.seconds
        ),
        budgets=budgets,
        kinds=dict(sorted(counts.items())),
        hard=hard,
        samples=len(graded),
        known=known,
        predictors=_predictors(budgets),
        noise=_speed_up(unpruned),
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Tests:
    """The samples that count: their numbers, whether answers are known, kinds, how they are resampled; and the unpruned
    model's seconds to the first token."""

    numbers: Sequence[int]
    known: bool
    kinds: Sequence[str | None]
    bootstrap: Bootstrap
    seconds: float

    def scores(self, measured: Measured) -> NDArray[np.float64]:
        """What a contender's answers are worth; where no right one is known, 1 for each that agrees ``[samples]``."""
        values = measured.right if self.known else measured.agrees
        return np.array([float(values[number] or 0) for number in self.numbers])


@dataclass(frozen=True)
class _Subset:
    """The hard samples."""

    numbers: Sequence[int]
    bootstrap: Bootstrap

    def interval(self, measured: Measured) -> Interval:
        return self.bootstrap.interval([measured.right[number] or 0.0 for number in self.numbers])


def _timed(measured: Measured, tests: _Tests) -> Timed:
    return Timed(tests.seconds / _speed_up(measured), tests.scores(measured))


def _unrestricted(unpruned: Measured, pruned: Sequence[Measured], tests: _Tests) -> dict[str, list[Timed]]:
    """By method, what it reaches without an engine's limits at all budgets, and the unpruned model."""
    plain = Timed(tests.seconds, tests.scores(unpruned))
    found: dict[str, list[Timed]] = {}
    for each in pruned:
        if each.identity.variant == TUNED:
            found.setdefault(each.identity.method, [plain]).append(_timed(each, tests))
    return found


def _rows(
    contenders: Sequence[Measured], tests: _Tests, subset: _Subset | None, unrestricted: Mapping[str, Sequence[Timed]]
) -> list[Row]:
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
        others = [other for other in racing if other != number]
        rival = max(others, key=lambda other: (float(scores[other].mean()), _speed_up(contenders[other])), default=None)
        baseline = random.get(measured.identity.variant, random.get(PUBLISHED))
        if measured.identity.method == RANDOM:
            baseline = None
        leads = [
            None if against is None else tests.bootstrap.interval(scores[number] - against)
            for against in (baseline, None if rival is None else scores[rival])
        ]
        equal = None
        if measured.identity.variant == SERVABLE and (known := unrestricted.get(measured.identity.method)):
            equal = at_equal_time(tests.seconds / _speed_up(measured), known)
        rows.append(_row(measured, tests, subset, leads[0], leads[1], best.get(number), equal))
    return rows


def _row(
    measured: Measured,
    tests: _Tests,
    subset: _Subset | None,
    over_random: Interval | None,
    over_other: Interval | None,
    best_share: float | None,
    equal: Timed | None,
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
        milliseconds=1000 * tests.seconds / _speed_up(measured),
        speed_up=_speed_up(measured),
        over_random=over_random,
        over_other=over_other,
        over_unrestricted=None if equal is None else tests.bootstrap.interval(scores - equal.scores),
        unrestricted_milliseconds=None if equal is None else 1000 * equal.seconds,
        best_share=best_share,
        trials=measured.trials,
        remark=measured.remark,
    )


def _speed_up(measured: Measured) -> float:
    return measured.unpruned_seconds / measured.seconds


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
