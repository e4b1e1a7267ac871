"""What a comparison says: a row a contender and budget, and all of them together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.comparison.contenders import label
from pipelines.comparison.statistics import Interval


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
        milliseconds: to the first token: the unpruned model's, divided by the speed-up, since machines drift between
            measurements.
        speed_up: of that, beside the unpruned model measured in turn; 1 of the unpruned model itself.
        over_random: accuracy minus that of random tokens of the same variant; None for themselves.
        over_other: accuracy minus that of the best other contender at the budget.
        over_unrestricted: of a servable one, accuracy minus what its method, tuned without an engine's limits, has at
            equal time to the first token (:func:`pipelines.comparison.equal_time.at_equal_time`); None of all others.
        unrestricted_milliseconds: that time; more than its own where none of those is as fast: the fastest's.
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
    over_unrestricted: Interval | None
    unrestricted_milliseconds: float | None
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
        noise: speed-up that was measured of the unpruned model beside itself, which would be 1 without any.
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
    noise: float
    left_out: Mapping[str, str]

    @property
    def rows(self) -> list[Row]:
        """Of all contenders, the unpruned model first."""
        return [self.unpruned, *(row for rows in self.budgets.values() for row in rows)]
