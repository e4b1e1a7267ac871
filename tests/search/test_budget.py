"""Schedules are on budget: by hand, and by counting whole tokens for any suggestion."""

import math
from itertools import pairwise

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal import FlowpruneError
from multimodal.layout import Layout
from search.budget import check_reachable, largest_ratio, last_ratio, ratio_range
from search.space import Space

PIXELS = ((0.5,) * 3, (0.5,) * 3)
unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("target", "spans", "ratios", "expected"),
    [
        # 9·r0 + 9·r0·r1 + 10·r0·r1·r2 = 28·target
        (0.25, (9, 9, 10), (0.4, 0.5), 0.8),  # 3.6 + 1.8 + 2·0.8 = 7
        (0.1, (9, 9, 10), (0.2, 0.4), 0.35),  # 1.8 + 0.72 + 0.8·0.35 = 2.8
        (0.3, (6,), (), 0.3),
        (0.5, (1, 1), (0.8,), 0.25),  # 0.8 + 0.8·0.25 = 1
        (1.0, (2, 3), (1.0,), 1.0),
        (0.4, (3, 3), (0.4,), 1.0),
    ],
)
def test_last_ratio_by_hand(target, spans, ratios, expected):
    assert last_ratio(target, spans, ratios) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.data())
def test_last_ratio_solves_the_equation(spans, data):
    ratios = [data.draw(st.floats(0.05, 1)) for _ in spans]
    shares = [math.prod(ratios[: number + 1]) for number in range(len(spans))]
    target = sum(span * share for span, share in zip(spans, shares, strict=True)) / sum(spans)
    assert last_ratio(target, spans, ratios[:-1]) == pytest.approx(ratios[-1], rel=1e-6)


@pytest.mark.parametrize(
    ("target", "ratios"),
    [(0.1, (0.9, 0.5)), (0.9, (0.2, 0.2)), (0.1, (0.2, 0.25))],  # the last: 1.8 + 0.45 + 0.5·1.1 = 2.8
)
def test_last_ratio_refuses_what_cannot_be_met(target, ratios):
    with pytest.raises(FlowpruneError, match=rf"no last ratio in \(0, 1\] meets a retention of {target}"):
        last_ratio(target, (9, 9, 10), ratios)


def test_last_ratio_refuses_a_wrong_number_of_ratios():
    with pytest.raises(FlowpruneError, match="3 spans need 2 ratios before the last, not 1"):
        last_ratio(0.1, (9, 9, 10), (0.5,))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12).map(sorted), st.floats(0.001, 1))
def test_largest_ratio_of_a_staircase(costs, target):
    steps = len(costs)
    found = largest_ratio(lambda ratio: costs[min(int(ratio * steps), steps - 1)], target)
    affordable = sum(cost <= target for cost in costs)
    expected = 1.0 if affordable == steps else affordable / steps
    assert found == pytest.approx(expected, abs=3e-7)


# whole tokens, counted here


def counts_of(layout: Layout, ratios: list[float]) -> list[int]:
    """Tokens left after each step: the nearest whole number, halves up, newlines and one other always."""
    left, counts = layout.visual_tokens, []
    for ratio in ratios:
        left = max(min(left, int(ratio * left + 0.5)), len(layout.newlines) + 1)
        counts.append(left)
    return counts


def retention_of(layouts: list[Layout], layers: list[int], depth: int, counts: list[list[int]]) -> float:
    seen = 0
    for image, left in zip(layouts, counts, strict=True):
        seen += layers[0] * image.visual_tokens
        seen += sum((end - at) * n for (at, end), n in zip(pairwise([*layers, depth]), left, strict=True))
    return seen / (depth * sum(image.visual_tokens for image in layouts))


@st.composite
def image_layouts(draw) -> Layout:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(2, 9))
    if draw(st.booleans()):
        return Layout(((rows, columns),))
    base = draw(st.integers(0, 4)) ** 2
    grids = ((rows, columns),) if not base else ((math.isqrt(base),) * 2, (rows, columns))
    newlines = tuple(base + columns + row * (columns + 1) for row in range(rows))
    return Layout(grids, newlines, tiles=2, image_size=(rows, columns))


@st.composite
def spaces(draw) -> Space:
    layouts = draw(st.lists(image_layouts(), min_size=1, max_size=3, unique=True))
    least = max((len(image.newlines) + 1) / image.visual_tokens for image in layouts)
    layers = draw(st.integers(1, 14))
    steps = draw(st.integers(1, min(layers, 4)))
    target = draw(st.one_of(st.floats(least, 1), st.just(1.0), st.just(least)))
    return Space("uniform", {}, {}, target, steps, layers, ["original"], layouts, PIXELS)


@settings(max_examples=120, deadline=None)
@given(spaces(), st.data())
def test_every_suggestion_is_on_budget(space, data):
    names = [f"place_{n}" for n in range(1, space.steps)] + [f"share_{n}" for n in range(space.steps - 1)]
    trial = optuna.trial.FixedTrial({name: data.draw(unit, name) for name in names})
    schedule = space.suggest(trial).schedule
    layers, ratios = [step.layer for step in schedule], [step.keep_ratio for step in schedule]
    assert layers[0] == 0 and layers == sorted(set(layers)) and layers[-1] < space.layers
    assert all(0 < ratio <= 1 for ratio in ratios)

    layouts = list(space.layouts)
    counts = [counts_of(image, ratios) for image in layouts]
    met = retention_of(layouts, layers, space.layers, counts)
    assert met <= space.retention + 1e-12
    # the last step keeps all that the budget allows: at the next larger ratio that keeps a token more, it is over
    more = []
    for image, left in zip(layouts, counts, strict=True):
        before = left[-2] if len(left) > 1 else image.visual_tokens
        more += [(count + 0.5) / before for count in range(left[-1], before) if count > len(image.newlines)]
    more = [ratio + 1e-9 for ratio in more if ratio > ratios[-1] + 1e-6]
    if more:
        grown = [counts_of(image, [*ratios[:-1], min(more)]) for image in layouts]
        assert retention_of(layouts, layers, space.layers, grown) > space.retention
    if more and len(layouts) == 1:
        assert space.retention - met < (space.layers - layers[-1]) / (space.layers * layouts[0].visual_tokens) + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.lists(st.integers(1, 6), min_size=2, max_size=3), st.data())
def test_ratio_range_is_what_counting_finds(tokens, spans, data):
    """For one image: every first count that later steps can live with, found by trying them all."""
    target = data.draw(st.integers(sum(spans), tokens * sum(spans)))  # in layer-tokens
    image = Layout(((1, tokens),))

    def spent(first: float, rest: float) -> float:
        left = counts_of(image, [first] + [rest] * (len(spans) - 1))
        return sum(span * n for span, n in zip(spans, left, strict=True))

    low, high = ratio_range(spent, target)
    later = sum(spans[1:])
    fits = [n for n in range(1, tokens + 1) if spans[0] * n + later <= target]
    exact = [n for n in fits if sum(spans) * n >= target] or fits[-1:]
    assert counts_of(image, [low])[0] in (exact[0], exact[0] + 1)  # the least, unless it leaves no choice
    assert counts_of(image, [low])[0] <= counts_of(image, [high])[0] == fits[-1]


@pytest.mark.parametrize(
    ("target", "layouts", "message"),
    [
        (1.2, [Layout(((4, 4),))], r"budget\.retention is 1\.2: it must be in \(0, 1\]"),
        (0.0, [Layout(((4, 4),))], r"budget\.retention is 0: it must be in \(0, 1\]"),
        (0.05, [Layout(((4, 4),))], r"1 of an image's 16 visual tokens stay in any case: ask for at least 0\.0625"),
        (0.1, [Layout(((9, 9),)), Layout(((2, 3),), (3, 7))], r"3 of an image's 8 .* at least 0\.375"),
    ],
)
def test_unreachable_budgets_are_refused(target, layouts, message):
    with pytest.raises(FlowpruneError, match=message):
        check_reachable(target, layouts)


def test_the_least_reachable_budget_is_accepted():
    check_reachable(1 / 49, [Layout(((7, 7),))])
    check_reachable(0.375, [Layout(((2, 3),), (3, 7))])
