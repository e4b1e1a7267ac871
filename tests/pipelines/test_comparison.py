"""The comparison's statistics, rules and words, each against a slow, obvious computation; no model."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal import PruningConfig, PruningStep
from pipelines.comparison.contenders import label
from pipelines.comparison.downscale import largest_factor
from pipelines.comparison.equal_time import Timed, at_equal_time
from pipelines.comparison.files import short_table, write_tables
from pipelines.comparison.measurement import Identity, Measured, known
from pipelines.comparison.rows import Comparison
from pipelines.comparison.statistics import Bootstrap, Interval, by_kind, hard_subset, spearman
from pipelines.comparison.summary import summarise
from pipelines.comparison.tables import budget_table, points
from pipelines.comparison.verdict import sentences
from pipelines.figures.accuracy import accuracy_figure, front, pareto_figure

KINDS = ["colour", "shape", None, "colour"]


def slow_interval(values: list[float], resamples: int = 4000) -> tuple[float, float]:
    rng = random.Random(3)
    means = sorted(mean(rng.choices(values, k=len(values))) for _ in range(resamples))
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


@pytest.mark.parametrize("values", [[1, 0, 0, 1, 1, -1] * 12, [0.2, 3.0, -1.0, 0.0] * 9, [1] * 20])
def test_an_interval_is_that_of_resampling_one_by_one(values):
    found = Bootstrap(len(values), 4000, seed=0).interval(values)
    low, high = slow_interval(values)
    assert found.mean == pytest.approx(mean(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.07)
    assert Bootstrap(len(values), 4000, seed=0).interval(values) == found


def test_an_interval_of_a_mean_is_nearly_the_normal_one():
    values = np.random.default_rng(0).normal(0.3, 1, 500)
    found, half = Bootstrap(500, 4000, seed=1).interval(values), 1.96 * values.std() / 500**0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_a_paired_difference_is_surer_than_two_means():
    rng = np.random.default_rng(0)
    theirs = (rng.random(200) < 0.5).astype(float)
    ours = np.where(rng.random(200) < 0.1, 1.0, theirs)  # never worse
    bootstrap = Bootstrap(200, 2000, seed=0)
    lead, alone = bootstrap.interval(ours - theirs), bootstrap.interval(ours)
    assert not lead.holds_zero and lead.high - lead.low < 0.7 * (alone.high - alone.low)


def test_the_best_share_counts_resamples():
    first, second, third = [1, 1, 0, 1, 0, 1], [1, 0, 1, 1, 0, 0], [0] * 6
    shares = Bootstrap(6, 5000, seed=0).best_shares([first, second, third])
    rng, wins = random.Random(0), [0.0, 0.0, 0.0]
    for _ in range(5000):
        drawn = rng.choices(range(6), k=6)
        totals = [sum(values[n] for n in drawn) for values in (first, second, third)]
        best = [number for number, total in enumerate(totals) if total == max(totals)]
        for number in best:
            wins[number] += 1 / len(best)
    assert shares == pytest.approx([win / 5000 for win in wins], abs=0.03) and sum(shares) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=4, max_size=12))
def test_rank_correlation_is_pearsons_of_mean_ranks(pairs):
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))

    def ranks(values: list[float]) -> list[float]:
        return [sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]

    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        a, b = (np.array(ranks(values)) for values in (first, second))
        a, b = a - a.mean(), b - b.mean()
        assert found == pytest.approx(float(a @ b / np.sqrt((a @ a) * (b @ b))))


def test_too_few_have_no_rank_correlation():
    assert spearman([1, 2, 3], [1, 2, 3]) is None


def test_the_hard_subset_is_right_unpruned_and_wrong_with_a_small_picture():
    assert hard_subset([True, True, False, False, None, True], [True, False, False, True, None, False]) == [1, 5]


def test_kinds():
    assert by_kind([1, 0, 1, 0.5], ["b", "a", None, "b"]) == {"a": 0, "b": 0.75}


@pytest.mark.parametrize("most", [3.0, 16.0, 63.0, 256.0])
def test_the_largest_factor_of_a_picture(most):
    def tokens(factor: float) -> int:
        return int(16 * factor) ** 2

    found = largest_factor(tokens, most, least=0.05)
    best = max(factor for factor in np.linspace(0.05, 1, 4000) if tokens(factor) <= most)
    assert found is not None and tokens(found) <= most and found == pytest.approx(best, abs=0.01)
    assert largest_factor(lambda factor: 256, most=255, least=0.05) is None


def measured(method: str, variant: str, budget: float | None, right: list[bool | None], **facts) -> Measured:
    config = PruningConfig(method={"name": "random"}, schedule=[PruningStep(layer=0, keep_ratio=0.5)])
    identity = Identity(
        method=method, variant=variant, measure="retention", budget=budget, model="m", data="d", device="cpu",
        config=config if variant in ("published", "tuned") else None,
    )  # fmt: skip
    values = {"retention": 0.5, "flops_share": 0.5, "kv_share": 0.5, "seconds": 1.0, "unpruned_seconds": 1.0}
    return Measured(
        identity=identity,
        answers=["x"] * len(right),
        right=right,
        agrees=[bool(ok) for ok in right],
        discrepancies=[0.1] * len(right),
        divergences=[0.2] * len(right),
        **values | facts,
    )


def four(pattern: str) -> list[bool]:
    return [mark == "1" for mark in pattern] * 10


def comparison(**left_out: str) -> Comparison:
    return summarise(
        measured("none", "unpruned", None, four("1110"), retention=1, flops_share=1, kv_share=1),
        {0.5: measured("downscale", "downscaled", 0.5, four("0110"), flops_share=1)},
        [
            measured("good", "published", 0.5, four("1110"), seconds=0.8),
            measured("close", "published", 0.5, [True, *four("1110")[1:-1], True], seconds=0.5),
            measured("random", "published", 0.5, four("1000"), seconds=0.4),
            measured("random", "tuned", 0.5, four("0110"), seconds=0.4),
            measured("good", "tuned", 0.5, four("0111"), seconds=0.9),
        ],
        KINDS * 10,
        2000,
        0,
        left_out,
    )


def test_a_summary_by_hand():
    found = comparison()
    [rows] = found.budgets.values()
    row = {each.name: each for each in rows}
    assert [each.accuracy.mean for each in rows] == sorted((each.accuracy.mean for each in rows), reverse=True)
    assert found.hard == {0.5: 10} and found.samples == 40 and found.known
    assert row["good"].hard.mean == 1 and row["good tuned"].hard.mean == 0
    assert row["good"].accuracy.mean == 0.75 and row["good"].speed_up == 1.25
    assert row["good"].milliseconds == pytest.approx(800) and found.unpruned.milliseconds == 1000
    assert row["good"].kinds == {"colour": 0.5, "shape": 1.0} and found.kinds == {"colour": 20, "shape": 10}
    assert row["good"].over_random.mean == 0.5  # of random tokens as published
    assert row["good tuned"].over_random.mean == 0.25  # of tuned ones
    assert row["random"].over_random is None
    assert row["close"].over_other.mean == pytest.approx(0.025) and row["good"].over_other.mean == pytest.approx(-0.025)
    assert row["downscaled"].best_share is None  # costs what unpruned does: no rival
    assert sum(each.best_share for each in rows if each.best_share is not None) == pytest.approx(1)
    assert found.unpruned.over_random is None and found.unpruned.accuracy.mean == 0.75


def timed(seconds: float, pattern: str) -> Timed:
    return Timed(seconds, np.array([float(mark) for mark in pattern]))


def test_what_is_reached_in_a_time():
    plain, half, tenth = timed(1.0, "1111"), timed(0.6, "1110"), timed(0.4, "1000")
    assert at_equal_time(0.6, [plain, half, tenth]) is half
    mixed = at_equal_time(0.5, [plain, half, tenth])  # half of the requests each: (0.25 + 0.75) / 2
    assert mixed.seconds == 0.5 and mixed.scores.tolist() == [1, 0.5, 0.5, 0]
    wide = at_equal_time(0.7, [plain, timed(0.6, "0000"), tenth])  # half of them unpruned beats three quarters of none
    assert wide.scores.tolist() == pytest.approx([1, 0.5, 0.5, 0.5])
    assert at_equal_time(0.3, [plain, half, tenth]) is tenth  # none is as fast: the fastest
    assert at_equal_time(2.0, [plain, half]) is plain


def test_what_serving_costs_at_equal_time():
    full = measured("none", "unpruned", None, four("1111"))
    small = {budget: measured("downscale", "downscaled", budget, four("0000"), flops_share=1) for budget in (0.5, 0.25)}
    runs = [
        measured("good", "tuned", 0.5, four("1110"), seconds=0.6),
        measured("good", "tuned", 0.25, four("1000"), seconds=0.4),
        measured("good", "servable", 0.5, four("1000"), seconds=0.5),
        measured("good", "servable", 0.25, four("0000"), seconds=0.4),
        measured("random", "published", 0.5, four("0000"), seconds=0.5),
    ]
    found = summarise(full, small, runs, [None] * 40, 500, 0, {})
    rows = {(row.name, row.budget): row for row in found.rows}
    assert rows["good servable", 0.5].over_unrestricted.mean == pytest.approx(0.25 - 0.5)  # half way between the two
    assert rows["good servable", 0.5].unrestricted_milliseconds == pytest.approx(500)
    assert rows["good servable", 0.25].over_unrestricted.mean == pytest.approx(-0.25)
    assert rows["good tuned", 0.5].over_unrestricted is None and rows["random", 0.5].over_unrestricted is None
    assert sentences(found, 0.5)[-1].startswith(
        "Of what can be served, good servable is the most accurate: 25.0%, first token in 500.0 ms; beside good tuned "
        "without that limit, at equal time to the first token, that is -25.0 ["
    )
    runs[2] = measured("good", "servable", 0.5, four("1000"), seconds=0.25)
    faster = sentences(summarise(full, small, runs, [None] * 40, 500, 0, {}), 0.5)[-1]
    assert "good tuned without that limit is never as fast, and beside the fastest (400.0 ms) that is +0.0 [" in faster


def test_without_answers_agreement_stands_for_accuracy():
    full = measured("none", "unpruned", None, [None] * 4)
    one = measured("random", "published", 0.5, [None] * 4).model_copy(update={"agrees": [True, True, False, True]})
    found = summarise(full, {0.5: measured("downscale", "downscaled", 0.5, [None] * 4)}, [one], KINDS, 200, 0, {})
    row = next(each for each in found.budgets[0.5] if each.method == "random")
    assert not found.known and row.accuracy.mean == 0.75 and row.hard is None and found.hard == {0.5: 0}


def test_words_say_what_beats_what_ties_and_what_is_faster():
    use, random_tokens, tie, sure = sentences(comparison(), 0.5)
    assert use.startswith("At retention 0.5 use close: 77.5% right (unpruned 75.0%), first token 2.00× as fast")
    assert random_tokens.startswith("It beats random tokens: +52.5 [")
    assert tie == "It cannot be told apart from good and good tuned."
    assert re.fullmatch(r"It is the best in \d+% of the resamples\.", sure)


def told(ours: Sequence[bool], theirs: Sequence[bool], random_ones: Sequence[bool], **facts) -> str:
    full = measured("none", "unpruned", None, [True] * 40)
    small = measured("downscale", "downscaled", 0.5, [False] * 40, flops_share=1)
    others = [measured("ours", "published", 0.5, ours), measured("theirs", "published", 0.5, theirs, **facts)]
    others.append(measured("random", "published", 0.5, random_ones))
    return " ".join(sentences(summarise(full, {0.5: small}, others, [None] * 40, 500, 0, {}), 0.5))


def test_words_where_one_is_clearly_best_and_where_nothing_beats_random_tokens():
    clear = told([True] * 40, four("1000"), four("0001"))
    assert "It beats the next, theirs: +75.0 [" in clear and "cannot be told apart" not in clear
    none = told(four("1000"), four("0100"), [True] * 40)
    assert "use random: 100.0% right" in none and "Nothing here is more accurate than random tokens." in none
    faster = told([True] * 40, [*[True] * 39, False], four("0001"), seconds=0.1)
    assert "It cannot be told apart from theirs. Of these, theirs is the fastest (10.00×)." in faster


def test_points():
    assert points(None) == "–" and points(Interval(0.104, -0.021, 0.2)) == "+10.4 [-2, 20]"


def test_the_front_is_what_no_other_beats_in_both():
    rows = comparison().rows
    expected = {
        row.name
        for row in rows
        if not any(
            o.accuracy.mean >= row.accuracy.mean
            and o.speed_up >= row.speed_up
            and (o.accuracy.mean, o.speed_up) != (row.accuracy.mean, row.speed_up)
            for o in rows
        )
    }
    assert {row.name for row in front(rows)} == expected


def test_figures_draw_every_contender_in_the_pages_ink():
    first = comparison()
    both = replace(
        first, budgets={0.5: first.budgets[0.5], 0.1: [replace(r, budget=0.1) for r in first.budgets[0.5][1:]]}
    )
    for svg in (accuracy_figure(first), accuracy_figure(both), pareto_figure(both)):
        assert svg.startswith("<svg ") and "currentColor" in svg and "#010203" not in svg
        assert all(f">{row.name}</text>" in svg for row in both.budgets[0.5])


def test_tables_and_files(tmp_path):
    found = comparison()
    assert budget_table(found, 0.5).row_count == 1 + len(found.budgets[0.5])
    written = {path.name: path.read_text() for path in write_tables(found, tmp_path)}
    assert json.loads(written["comparison.json"])["hard"] == {"0.5": 10}
    assert written["comparison.csv"].count("\n") == 2 + len(found.budgets[0.5])
    assert "| close | **77.5** |" in short_table(found) and "| unpruned | 75.0 |" in written["comparison.md"]


def test_a_measurement_is_known_again_only_where_nothing_differs(tmp_path):
    one = measured("good", "published", 0.5, four("1110"))
    path = one.save(tmp_path)
    assert known(one.identity, tmp_path) == one
    for change in ({"data": "e"}, {"model": "n"}, {"device": "gpu"}, {"budget": 0.25}, {"variant": "tuned"}):
        assert known(one.identity.model_copy(update=change), tmp_path) is None
    path.write_text(path.read_text()[:50])
    with pytest.raises(Exception, match=r"is damaged .*: delete it"):
        known(one.identity, tmp_path)


def test_labels():
    found = [label("fastv", "published"), label("fastv", "tuned"), label("none", "unpruned")]
    assert found == ["fastv", "fastv tuned", "unpruned"]
