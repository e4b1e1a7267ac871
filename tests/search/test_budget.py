"""Schedules are on budget: by hand, and by counting whole tokens for any suggestion."""

import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal import FlowpruneError
from multimodal.costs import Workload
from multimodal.layout import Layout
from search.budget import check_reachable, largest_ratio, last_ratio, ratio_range, share_of
from search.choice import MethodChoice
from search.latency import Latency
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


def text_config(layers: int) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=12, intermediate_size=20, num_attention_heads=3)


def costs_of(measure: str, tokens: int, text: int) -> int:
    """A layer's part of one prompt's cost."""
    if measure == "retention":
        return tokens
    if measure == "kv":
        return tokens + text
    weights = 4 * 12 * 12 + 3 * 12 * 20
    return 2 * (tokens + text) * weights + 2 * (tokens + text) ** 2 * 12


def share(measure: str, prompts: list, layers: list[int], depth: int, ratios: list[float]) -> float:
    """Of the unpruned model's cost, prompt by prompt and layer by layer."""
    spent = full = 0
    for images, text in prompts:
        counts = [[image.visual_tokens, *counts_of(image, ratios)] for image in images]
        for layer in range(depth):
            step = sum(at <= layer for at in layers)
            spent += costs_of(measure, sum(left[step] for left in counts), text)
            full += costs_of(measure, sum(left[0] for left in counts), text)
    return spent / full


@st.composite
def image_layouts(draw) -> Layout:
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(2, 9))
    if draw(st.booleans()):
        return Layout(((rows, columns),))
    base = draw(st.integers(0, 4)) ** 2
    grids = ((rows, columns),) if not base else ((math.isqrt(base),) * 2, (rows, columns))
    newlines = tuple(base + columns + row * (columns + 1) for row in range(rows))
    return Layout(grids, newlines, image_size=(rows, columns))


@st.composite
def workloads(draw) -> tuple[list, Workload]:
    """Prompts, some alike, some with two images; and the same as the search sees them."""
    layouts = draw(st.lists(image_layouts(), min_size=1, max_size=3, unique=True))
    images = st.lists(st.sampled_from(layouts), min_size=1, max_size=2)
    prompts = draw(st.lists(st.tuples(images, st.integers(0, 30)), min_size=1, max_size=4))
    return prompts, Workload(text_config(draw(st.integers(1, 14))), prompts)


@settings(max_examples=150, deadline=None)
@given(workloads(), st.sampled_from(["retention", "flops", "kv"]), st.integers(1, 4), unit, st.data())
def test_every_suggestion_is_on_budget(workload, measure, steps, where, data):
    prompts, counted = workload
    depth, steps = counted.layers, min(steps, counted.layers)
    least = share(measure, prompts, [0], depth, [1e-9])
    target = least + where * (1 - least)
    cost = share_of(counted, measure)
    space = Space([MethodChoice("uniform")], measure, [target], cost, steps, depth, ["original"], PIXELS)
    places = space.schedules(space.choices[0]).places
    values = {f"place_{n}": data.draw(st.integers(0, places - 1)) for n in range(1, space.steps)}
    values |= {f"share_{n}": data.draw(unit) for n in range(space.steps - 1)}
    trial = optuna.trial.FixedTrial(values)
    config = space.suggest(trial)
    layers, ratios = [step.layer for step in config.schedule], [step.keep_ratio for step in config.schedule]
    assert layers[0] == 0 and layers == sorted(set(layers)) and layers[-1] < space.layers
    assert all(0 < ratio <= 1 for ratio in ratios)

    met = share(measure, prompts, layers, depth, ratios)
    assert config.budget.model_dump() == {"measure": measure, "asked": target, "met": pytest.approx(met)}
    assert config.budget.met <= target and met <= target + 1e-12
    # the last step keeps all that the budget allows: at the next larger ratio that keeps a token more, it is over
    more = []
    for image in counted.layouts:
        left = counts_of(image, ratios)
        before = left[-2] if len(left) > 1 else image.visual_tokens
        more += [(count + 0.5) / before for count in range(left[-1], before) if count > len(image.newlines)]
    more = [ratio + 1e-9 for ratio in more if ratio > ratios[-1] + 1e-6]
    if more:
        assert share(measure, prompts, layers, depth, [*ratios[:-1], min(more)]) > target


def test_a_budget_in_milliseconds_is_met_by_the_last_token():
    prompts = [([Layout(((8, 8),))], 6), ([Layout(((8, 8),)), Layout(((5, 7),))], 3)]
    workload = Workload(text_config(6), prompts)
    latency = Latency(device="", tokens=(1, 40, 70, 108), milliseconds=(2, 5, 5, 30), pruning=1.5, error=0)

    def milliseconds(layers: list[int], ratios: list[float]) -> float:
        total = 0.0
        for images, text in prompts:
            counts = [[image.visual_tokens, *counts_of(image, ratios)] for image in images]
            seen = [text + sum(left[sum(at <= layer for at in layers)] for left in counts) for layer in range(6)]
            total += sum(np.interp(seen, [1, 40, 70, 108], [2, 5, 5, 30])) / 6
        return total / len(prompts) + 1.5

    cost = partial(latency.predict, workload)
    space = Space([MethodChoice("uniform")], "latency_ms", [7.0], cost, 3, 6, ["original"], PIXELS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        config = space.suggest(study.ask())
        layers, ratios = [step.layer for step in config.schedule], [step.keep_ratio for step in config.schedule]
        assert config.budget.met == pytest.approx(milliseconds(layers, ratios)) and config.budget.met <= 7
        assert ratios[-1] == 1 or milliseconds(layers, [*ratios[:-1], ratios[-1] + 1e-6]) > 7


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


GRID, LINES = Layout(((4, 4),)), Layout(((2, 3),), (3, 7))


@pytest.mark.parametrize(
    ("measure", "target", "prompts", "message"),
    [
        ("retention", 1.2, [([GRID], 4)], r"retention is 1\.2, but keeping everything costs 1: ask for less"),
        ("retention", 0.05, [([GRID], 4)], r"0\.0625 is left in any case \(a token of each image, newline tokens\): "),
        ("retention", 0.1, [([GRID, LINES], 0)], r"0\.1667 is left .*: ask for at least 0\.1667"),  # 4 of 24
        ("kv", 0.2, [([GRID], 4)], r"kv is 0\.2, but 0\.25 is left .*newline tokens, text\): ask for at least 0\.25"),
        ("kv", 0.1, [([GRID], 4), ([GRID], 0)], r"at least 0\.1667"),  # 6 of 36
    ],
)
def test_unreachable_budgets_are_refused(measure, target, prompts, message):
    cost = share_of(Workload(text_config(3), prompts), measure)
    with pytest.raises(FlowpruneError, match=message):
        check_reachable(measure, target, cost)


def test_the_least_reachable_budget_is_accepted():
    for measure in ("retention", "flops", "kv"):
        cost = share_of(Workload(text_config(3), [([GRID, LINES], 2)]), measure)
        with pytest.raises(FlowpruneError) as refused:
            check_reachable(measure, 1e-4, cost)
        check_reachable(measure, float(re.search(r"at least ([\d.]+)\.", str(refused.value))[1]), cost)
