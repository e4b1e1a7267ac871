"""The search space: what is searched comes from the methods themselves, and everything suggested is a valid config."""

import math
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Annotated, Literal

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multimodal import FlowpruneError
from multimodal.costs import Workload
from multimodal.evidence import ContextRelevance, PatchEntropy, ReceivedAttention, Request
from multimodal.layout import Layout
from multimodal.methods import Method, SearchRange
from multimodal.methods.vflowopt import VFlowOpt
from multimodal.ranges import SearchChoice
from search.budget import share_of
from search.choice import MethodChoice, searched_parameters
from search.schedules import Schedules
from search.space import Space, flat_parameters

TEXT = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 3}
PIXELS = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
GRID = Layout(((8, 8),))
DECLARED = {
    name: next(item for item in field.metadata if isinstance(item, SearchRange))
    for name, field in VFlowOpt.model_fields.items()
    if any(isinstance(item, SearchRange) for item in field.metadata)
}


def space(layouts=(GRID,), layers: int = 9, **changes) -> Space:
    workload = Workload(SimpleNamespace(num_hidden_layers=layers, **TEXT), [([layout], 0) for layout in layouts])
    own = {
        "fixed": changes.pop("fixed", {}),
        "ranges": changes.pop("ranges", {}),
        "name": changes.pop("method", "vflowopt"),
    }
    fields = {
        "choices": changes.pop("choices", None) or [MethodChoice(**own)],
        "measure": "retention",
        "budgets": [0.25],
        "cost": share_of(workload, "retention"),
        "steps": 3,
        "layers": layers,
        "positions": ["compact", "original"],
        "normalization": PIXELS,
    }
    return Space(**(fields | changes))


def only(of: Space) -> Schedules:
    """The schedules of a space of one method."""
    return of.schedules(of.choices[0])


def vision_requests(method: str, fixed: dict, ranges: dict) -> list:
    return MethodChoice(method, fixed, ranges).vision_requests


def suggested(of: Space, seed: int = 0, trials: int = 20) -> list:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [(trial := study.ask(), of.suggest(trial)) for _ in range(trials)]


def test_parameters_come_from_the_fields_of_the_method():
    assert space().choices[0].parameters == DECLARED
    assert {"query_threshold", "entropy_weight", "recycling_cell", "recycling_weight", "vision_layer"} <= set(DECLARED)
    for trial, config in suggested(space()):
        assert set(trial.params) == {*DECLARED, "place_1", "place_2", "share_0", "share_1", "positions"}
        for name, bounds in DECLARED.items():
            assert bounds.low <= trial.params[name] <= bounds.high
            if name != "recycling_cell":
                assert getattr(config.method, name) == trial.params[name]
        assert isinstance(config.method.vision_layer, int)
        assert config.positions == trial.params["positions"]
        assert (config.image_mean, config.image_std) == PIXELS


def test_fixed_parameters_and_ranges_are_respected():
    narrowed = space(
        fixed={"entropy_weight": 0.25, "recycling_cell": None, "recycling_count": "released"},
        ranges={"query_threshold": (2, 3), "vision_layer": (-2, -2)},
        positions=["original"],
    )
    for trial, config in suggested(narrowed):
        assert not {"entropy_weight", "recycling_cell", "recycling_count", "positions"} & set(trial.params)
        assert 2 <= config.method.query_threshold <= 3 and config.method.vision_layer == -2
        assert (config.method.entropy_weight, config.method.recycling_cell) == (0.25, None)
        assert config.method.recycling_count == "released" and config.positions == "original"


@pytest.mark.parametrize(
    ("where", "values", "message"),
    [
        ("fixed", {"treshold": 1}, r"method\.fixed\.treshold: vflowopt has no such parameter; it has entropy_weight, "),
        ("ranges", {"cell": (1, 2)}, r"method\.ranges\.cell: vflowopt has no such parameter"),
        ("fixed", {"name": "random"}, r"method\.fixed\.name: vflowopt has no such parameter"),
        ("ranges", {"recycling_count": (0, 1)}, r"method\.ranges\.recycling_count: vflowopt does not search it"),
        ("ranges", {"query_threshold": (5, 1)}, r"method\.ranges\.query_threshold is \[5, 1\]"),
        ("ranges", {"query_threshold": (0, 1)}, r"method\.ranges\.query_threshold is \[0, 1\]: .* above 0"),
        ("ranges", {"recycling_weight": (0, 3)}, r"method\.recycling_weight is 3"),
        ("ranges", {"vision_layer": (-3, 0)}, r"method\.vision_layer is 0"),
        ("fixed", {"entropy_weight": 11}, r"method\.entropy_weight is 11"),
    ],
)
def test_what_the_method_refuses_is_refused_by_name(where, values, message):
    with pytest.raises(FlowpruneError, match=message):
        vision_requests("vflowopt", **({"fixed": {}, "ranges": {}} | {where: values}))


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(FlowpruneError, match=r"no method 'vflow': choose one of .*vflowopt"):
        searched_parameters("vflow", {}, {})


@pytest.mark.parametrize("steps", [0, 10])
def test_more_steps_than_layers_are_refused(steps):
    with pytest.raises(FlowpruneError, match=rf"search\.steps is {steps}: choose one of 1 to 9, as many as"):
        space(steps=steps)


def test_inner_steps_lie_after_the_deepstack():
    for steps in (2, 4, 5):
        of = space(steps=steps, first_inner_layer=5)
        for places in ([0.0] * (steps - 1), [1.0] * (steps - 1), [0.3] * (steps - 1)):
            layers = only(of).place_steps(places, 0.25)
            assert layers == sorted(set(layers)) and layers[0] == 0 and min(layers[1:]) >= 5 and max(layers) < 9
    with pytest.raises(FlowpruneError, match=r"search\.steps is 6: choose one of 1 to 5"):
        space(steps=6, first_inner_layer=5)


def test_what_is_searched_is_what_is_tuned():
    """A cell that is too small for some image is met there, by the nearest; the config keeps what was suggested."""
    for trial, config in suggested(space(budgets=[0.05]), trials=20):
        assert config.method.recycling_cell == trial.params["recycling_cell"]


@given(st.integers(1, 6), st.integers(0, 20), st.data())
def test_steps_strictly_increase_and_stay_inside(steps, more, data):
    places = data.draw(st.lists(st.floats(0, 1), min_size=steps - 1, max_size=steps - 1))
    layers = only(space(steps=steps, layers=steps + more)).place_steps(places, 0.25)
    assert layers[0] == 0 and len(layers) == steps and layers[-1] < steps + more
    assert all(before < after for before, after in pairwise(layers))


def test_every_layer_can_be_chosen():
    one = only(space(steps=2, layers=7))
    assert {one.place_steps([n / 50], 0.25)[1] for n in range(51)} == set(range(1, 7))
    assert only(space(steps=3, layers=3)).place_steps([0.9, 0.1], 0.25) == [0, 1, 2]
    found = {tuple(step.layer for step in config.schedule) for _, config in suggested(space(steps=3, layers=5), 0, 150)}
    assert found == {(0, *inner) for inner in combinations(range(1, 5), 2)}


class Ramp(Method):
    """A method as a user might write it."""

    name: Literal["test_ramp"] = "test_ramp"
    slope: Annotated[float, SearchRange(-2, 2)] = 1.0
    layer: Annotated[int, SearchRange(-4, -2)] = -2
    label: str = "x"

    @property
    def evidence(self) -> tuple[Request, ...]:
        return (ReceivedAttention(self.layer),)


def test_a_users_own_method_is_searched_without_other_change():
    try:
        of = space(method="test_ramp", ranges={"slope": (0, 1)}, fixed={"label": "y"})
        assert of.choices[0].parameters == {"slope": SearchRange(0, 1), "layer": SearchRange(-4, -2)}
        configs = [config for _, config in suggested(of)]
        assert {type(config.method) for config in configs} == {Ramp}
        assert {config.method.layer for config in configs} == {-4, -3, -2}
        assert all(0 <= config.method.slope <= 1 and config.method.label == "y" for config in configs)
        assert vision_requests("test_ramp", {}, {}) == [ReceivedAttention(layer) for layer in (-4, -3, -2)]
    finally:
        Method.registry.pop("test_ramp", None)


@pytest.mark.parametrize(
    ("method", "fixed", "ranges", "expected"),
    [
        ("vflowopt", {}, {}, [*(ContextRelevance(layer, 0.05, 50) for layer in (-3, -2, -1)), PatchEntropy(True)]),
        ("vflowopt", {"vision_layer": -5}, {}, [ContextRelevance(-5, 0.05, 50), PatchEntropy(True)]),
        (
            "vflowopt",
            {"entropy_weight": 0.0, "query_threshold": 3.0},
            {"vision_layer": (-2, -1)},
            [ContextRelevance(-2, 3.0), ContextRelevance(-1, 3.0)],
        ),
        ("uniform", {}, {}, []),
        ("fastv", {}, {}, []),
    ],
)
def test_what_a_search_asks_of_the_tower(method, fixed, ranges, expected):
    assert set(vision_requests(method, fixed, ranges)) == set(expected)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("budget", [0.15, 0.25, 0.6])
def test_a_method_that_reads_the_layer_before_begins_inside(steps, budget):
    """Every suggestion is feasible: what comes before the first step never spends the budget."""
    of = space(method="fastv", steps=steps, budgets=[budget])
    found = suggested(of, 0, 100)
    for _, config in found:
        layers = [step.layer for step in config.schedule]
        assert layers[0] >= 1 and layers == sorted(set(layers))
        assert config.budget.met <= budget
    begins = {config.schedule[0].layer for _, config in found}
    assert begins == set(range(1, 1 + min(only(of).places, int(9 * budget))))  # after l of 9 layers, l / 9 is spent
    with pytest.raises(FlowpruneError, match="all before layer 1"):
        space(method="fastv", steps=1, budgets=[0.1])


def test_a_trial_has_one_of_the_budgets_and_its_config_says_which():
    several = space(budgets=[0.1, 0.25, 0.5])
    found = [(trial.params["budget_number"], config.budget) for trial, config in suggested(several, trials=30)]
    assert {number for number, _ in found} == {0, 1, 2}
    for number, budget in found:
        assert budget.asked == several.budgets[number] and budget.asked - 0.03 < budget.met <= budget.asked
    assert several.describe()["retention"] == [0.1, 0.25, 0.5] and space().describe()["retention"] == 0.25


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 2 * 2),  # thresholds, positions
        ({"budgets": [0.1, 0.25, 0.5]}, 2 * 2 * 3),
        ({"ranges": {"query_threshold": (2, 3), "vision_layer": (-3, -2)}}, 2),
        ({"fixed": {"query_threshold": 30.0}, "positions": ["original"], "steps": 1}, 1),
        ({"method": "uniform"}, 2),
    ],
)
def test_guesses_are_every_combination_and_lie_in_the_space(changes, count):
    of = space(**changes)
    assert len(of.guesses) == count
    study = optuna.create_study()
    for guess in of.guesses:
        study.enqueue_trial(guess)
        trial = study.ask()
        of.suggest(trial)  # warns of what lies outside
        assert trial.params.items() <= guess.items() and set(of.choices[0].parameters) <= set(trial.params)
        for name, bounds in of.choices[0].parameters.items():
            assert bounds.low <= trial.params[name] <= bounds.high
    assert len({str(trial.params) for trial in study.trials}) == count


def test_flat_parameters_are_plain_and_complete():
    _, config = suggested(space(), trials=1)[0]
    flat = flat_parameters(config)
    assert {name: flat[f"{name}"] for name in DECLARED} == config.method.model_dump(include=set(DECLARED))
    for number, step in enumerate(config.schedule):
        assert (flat[f"layer_{number}"], flat[f"keep_ratio_{number}"]) == (step.layer, step.keep_ratio)
    assert flat["positions"] == config.positions and "name" not in flat


# several methods, merging rules, curves


def mixed(**changes) -> Space:
    names = ("vflowopt", "fastv", "divprune")
    choices = [MethodChoice(name, mergings=("own", "none", "cells", "nearest", "clusters")) for name in names]
    return space(choices=choices, **changes)


def test_a_mixed_search_suggests_every_method_rule_and_only_what_they_have():
    of = mixed(budgets=[0.2, 0.4])
    found = suggested(of, 0, 200)
    assert {config.method.name for _, config in found} == {"vflowopt", "fastv", "divprune"}
    for trial, config in found:
        own = config.method.name
        assert trial.params["method"] == own
        assert all(
            name in ("budget_number", "method", "positions") or name.startswith(f"{own}.") for name in trial.params
        )
        rule = trial.params[f"{own}.merging"]
        assert (config.merging is None) == (rule == "own") and (config.merging is None or config.merging.rule == rule)
        assert not (own == "divprune" and rule == "cells")  # which has no score to rank tokens by
        if rule == "clusters":
            assert config.merging.share == trial.params[f"{own}.clusters.share"]
        assert config.budget.asked - 0.05 < config.budget.met <= config.budget.asked
    assert {config.merging.rule for _, config in found if config.merging} == {"none", "cells", "nearest", "clusters"}
    assert of.conditional and of.guesses == [] and not space().conditional
    flat = flat_parameters(found[0][1], mixed=True)
    assert flat["method"] == found[0][1].method.name
    assert [each["method"] for each in of.describe()["among"]] == ["vflowopt", "fastv", "divprune"]


def test_a_mixed_search_gives_a_method_as_many_steps_as_its_layers_allow():
    of = mixed(steps=9)
    steps = {config.method.name: len(config.schedule) for _, config in suggested(of, 0, 60)}
    assert steps == {"vflowopt": 9, "divprune": 9, "fastv": 8}


def test_merging_rules_that_do_not_fit_are_refused():
    with pytest.raises(FlowpruneError, match=r"search\.merging \['cells'\] ranks .* divprune has none: add nearest"):
        MethodChoice("divprune", mergings=("cells",))
    with pytest.raises(FlowpruneError, match="no merging rule 'cell': choose one of cells, clusters, nearest, none"):
        MethodChoice("vflowopt", mergings=("cell",))


class Choosing(Method):
    """A method with a parameter that has no order."""

    name: Literal["test_choosing"] = "test_choosing"
    mode: Annotated[Literal["a", "b"], SearchChoice(("a", "b"))] = "a"

    @property
    def evidence(self) -> tuple[Request, ...]:
        return (ReceivedAttention(-1 if self.mode == "a" else -2),)


def test_parameters_without_order_are_chosen_among():
    try:
        of = space(method="test_choosing")
        assert {config.method.mode for _, config in suggested(of)} == {"a", "b"}
        assert vision_requests("test_choosing", {}, {}) == [ReceivedAttention(-1), ReceivedAttention(-2)]
        assert of.describe()["parameters"] == {"mode": ["a", "b"]}
        with pytest.raises(FlowpruneError, match=r"method\.ranges\.mode: test_choosing does not search it"):
            MethodChoice("test_choosing", {}, {"mode": (0, 1)}).parameters  # noqa: B018
    finally:
        Method.registry.pop("test_choosing", None)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 50), st.sampled_from([0.08, 0.3, 0.7, 1.0]), st.integers(1, 9))
def test_a_curve_is_on_budget_and_falls_as_a_sigmoid(midpoint, steepness, budget, steps):
    of = only(space(steps=steps))
    layers = of.place_steps([number / (steps - 1) for number in range(steps - 1)], budget)
    schedule = of.by_curve(budget, layers, midpoint, steepness)
    assert [step.layer for step in schedule] == layers
    assert budget - 0.03 < of.cost(schedule) <= budget  # a token in 64
    left, tokens = [], 1.0
    for step in schedule:
        tokens *= step.keep_ratio
        left.append(tokens)
    curve = [1 / (1 + math.exp(steepness * (layer / 9 - midpoint))) for layer in layers]
    inner = [n for n in range(steps - 1) if 0.05 < left[n] < 1]  # above 1 it is cut, below a token it cannot fall
    for a, b in pairwise(inner):
        assert left[b] / left[a] == pytest.approx(curve[b] / curve[a], rel=0.02)


def test_a_search_of_curves_suggests_two_parameters():
    for trial, config in suggested(space(shape="sigmoid", steps=4)):
        assert {"midpoint", "steepness"} <= set(trial.params) and not any("share" in name for name in trial.params)
        assert len(config.schedule) == 4 and config.budget.met <= 0.25


def test_what_becomes_of_sinks_is_searched_where_a_method_reads_attention():
    of = space(
        choices=[MethodChoice(name, sinks=("kept", "masked", "calibrated")) for name in ("vflowopt", "divprune")]
    )
    for trial, config in suggested(of, 0, 60):
        asked = trial.params.get(f"{config.method.name}.sinks")
        assert config.sinks == (asked or "kept") and (asked is None) == (config.method.name == "divprune")
    requests = MethodChoice("vflowopt", {"vision_layer": -1}, sinks=("kept", "calibrated")).vision_requests
    kept = ContextRelevance(-1, 0.05, 50)
    assert set(requests) == {kept, ContextRelevance(-1, 0.05, 50, sinks="calibrated"), PatchEntropy(True)}


def test_a_budget_that_adapts_is_met_on_average():
    layouts, seen = [GRID, Layout(((6, 9),)), Layout(((12, 12),))], [[0.2], [0.5], [0.6]]
    prompts = [([layout], 0) for layout in layouts]
    workload = Workload(SimpleNamespace(num_hidden_layers=9, **TEXT), prompts, lambda: seen)

    def adapted(adaptive):
        return share_of(workload.adapted(adaptive), "retention")

    of = space(layouts, adapted=adapted, reference=0.4, positions=["original"])
    for trial, config in suggested(of):
        assert config.adaptive.strength == trial.params["strength"] and config.adaptive.reference == 0.4
        kept = []
        for layout, [own] in zip(layouts, seen, strict=True):
            share = round(min(max((own / 0.4) ** config.adaptive.strength, 0.5), 2.0), 3)
            left, counts = layout.visual_tokens, []
            for number, step in enumerate(config.schedule):
                ratio = step.keep_ratio if number else min(step.keep_ratio * share, 1)
                left = min(left, max(1, math.floor(ratio * left + 0.5)))
                counts.append(left)
            by_layer = [layout.visual_tokens] * 9
            for step, count in zip(config.schedule, counts, strict=True):
                by_layer[step.layer :] = [count] * (9 - step.layer)
            kept.append(sum(by_layer))
        met = sum(kept) / (9 * sum(layout.visual_tokens for layout in layouts))
        assert config.budget.met == pytest.approx(met) and 0.23 < met <= 0.25
    assert of.describe()["adaptive"] == 0.4 and of.guesses[0]["strength"] == 0
