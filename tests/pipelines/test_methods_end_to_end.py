"""The main job with methods and choices that ask more of its stages than scores and keep ratios."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("unrendered")
SMOKE = ("experiment=smoke", "search.batch_size=3", "budget.retention=0.3")


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=flowcut", "search.steps=2"],  # prunes inside the tower
        ["method=sparsevlm"],  # text and the language model's attention
        ["method=mixed", "method.among=[vispruner,ipcv,dart]", "search.merging=[own,nearest,clusters]"],
        ["search.adaptive=true", "search.sinks=[kept,masked,calibrated]", "search.schedule=sigmoid"],
    ],
    ids=str,
)
def test_the_main_job_runs(overrides, flowprune, tmp_path):
    code, printed = flowprune(*SMOKE, "stages=[calibrate,search,maps,validate,export]", *overrides)
    assert code == 0, printed
    exported = json.loads((tmp_path / "run" / "pruning.json").read_text())
    assert exported["budget"]["met"] <= 0.3
    validated = json.loads((tmp_path / "run" / "validation.json").read_text())["contenders"]
    assert {"unpruned", "tuned", "uniform", "random"} <= set(validated)
    assert ("untuned" in validated) == ("method=mixed" not in overrides)
    assert (tmp_path / "run" / "maps" / "00.png").exists()
    code, printed = flowprune(*SMOKE, "stages=[generate]", *overrides)
    assert code == 0, printed


def test_what_times_the_language_model_alone_refuses_methods_that_prune_the_tower(flowprune):
    code, printed = flowprune(*SMOKE[:2], "method=flowcut", "budget.latency_ms=5", "stages=[search]")
    assert code == 2 and "flowcut prunes inside the tower: set budget to" in " ".join(printed.split())


def test_a_mixture_leaves_out_what_the_budget_does_not_allow(flowprune):
    mixed = (*SMOKE[:2], "method=mixed", "stages=[search]", "search.trials=2", "budget.retention=0.1")
    code, printed = flowprune(*mixed, "method.among=[divprune,fastv]")
    assert code == 0 and "left out of the mixture: fastv: budget.retention is 0.1" in " ".join(printed.split())
    code, printed = flowprune(*mixed, "method.among=[dart,fastv]", "study=other")
    assert code == 2 and "No method of the mixture can meet the budget: budget.retention is 0.1" in " ".join(
        printed.split()
    )
