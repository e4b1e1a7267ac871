"""Wrong settings, through the real command line: exit code 2 and one sentence, before any work."""

import re

import pytest

import pipelines.model
from pipelines.settings import BudgetSettings


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """No model is loaded before the settings are right."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(pipelines.model, "load_model", refuse)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.retention=1.2"], r"budget\.retention is 1\.2: give a share of the unpruned model's, in \(0, 1\]"),
        (["budget.retention=0"], r"budget\.retention is 0: give a share"),
        (["method.fixed.treshold=3", "stages=[search]"], r"method\.fixed\.treshold: vflowopt has no such parameter"),
        (["budget.kv=[0.5,yes]"], r"budget\.kv is 'yes': give a share"),
        (
            ["budget.flops=0.2", "+budget.kv=0.3"],
            r"budget has flops and kv: choose exactly one of retention, flops, kv, ",
        ),
        (["budget=flops", "~budget.flops", "budget.name=x"], r"budget has no measure: choose exactly one"),
        (["budget.retention=[0.1,0.2]"], r"budget\.retention names several budgets: add search=pareto, or name one"),
        (["search=pareto", "budget=kv"], r"search=pareto needs several budgets to search: .* budget\.kv=\[0\.1,0\.2\]"),
        (["search=pareto", "search.early_stopping=true"], r"search\.early_stopping compares a trial with the one best"),
        (["search.trials=abc"], r"search\.trials is 'abc': input should be a valid integer"),
        (
            ["search.positions=[sideways]"],
            r"search\.positions\.0 is 'sideways': input should be 'compact' or 'original'",
        ),
        (["search.positions=[]"], r"search\.positions is \[\]: .*at least 1 item"),
        (["search.sampler=grid"], r"search\.sampler is 'grid': input should be 'auto', 'gp', 'tpe' or 'random'"),
        (["method=mixed", "search.sampler=gp"], r"search\.sampler=gp cannot model parameters .* leave it at auto"),
        (["search.merging=[own,cell]", "stages=[calibrate]"], r"no merging rule 'cell': choose one of cells, "),
        (["method.ranges.entropy_weight=3"], r"method\.ranges\.entropy_weight is 3: "),
        (["+search.trails=3"], r"search\.trails is not a known key"),
        (["+model.flavour=x"], r"model\.flavour is not a known key"),
        (["stages=[nope]"], r"stages\.0 is 'nope': input should be 'calibrate', 'search', "),
        (["stages=[]"], r"stages is \[\]: .*at least 1 item"),
        (["seed=-1"], r"seed is -1: input should be greater than or equal to 0"),
        (["data=folder", "stages=[calibrate]"], r"data\.path is missing: say where the folder is"),
        (["model.path=null"], r"model\.path is None: input should be a valid string"),
        (
            ["method.name=vflow", "stages=[calibrate]"],
            r"There is no method 'vflow': choose one of .*random, .*uniform, vflowopt",
        ),
        (["data=folder", "data.path=/nowhere", "stages=[calibrate]"], r"data\.path /nowhere is not a folder"),
        (["stages=[generate]"], r"holds no tuned config: run stages=\[calibrate,search\] first"),
        (["stages=[export]"], r"holds no tuned config"),
        (["stages=[generate]", "generate.config=/nowhere.json"], r"/nowhere\.json does not exist"),
    ],
)
def test_a_wrong_value_is_one_sentence(overrides, message, flowprune):
    code, printed = flowprune(*overrides)
    printed = " ".join(printed.split())
    assert code == 2 and "Traceback" not in printed
    [sentence] = re.findall(r"error: (.*)", printed)
    assert re.search(message, sentence)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search.trails=3"], r"Could not override 'search\.trails'"),
        (["model=blip"], r"Could not find 'model/blip'.*tiny"),
        (["method=vflow"], r"Could not find 'method/vflow'.*vflowopt"),
        (["experiment=nope"], r"Could not find 'experiment/nope'"),
        (["search.trials"], r"search.trials is no key=value"),
    ],
)
def test_hydra_says_what_it_cannot_compose(overrides, message, flowprune):
    code, printed = flowprune(*overrides)
    assert code == 2 and "Traceback" not in printed
    assert re.search(message, " ".join(printed.split()))


@pytest.mark.parametrize("asked", [{"retention": 0.1}, {"kv": [0.4, 0.2]}, {"latency_ms": 40}])
def test_a_budget_reaches_workers_as_it_is(asked):
    budget = BudgetSettings(name="x", **asked)
    [(measure, value)] = asked.items()
    assert (budget.measure, budget.budgets) == (measure, sorted(value) if isinstance(value, list) else [value])
    assert BudgetSettings.model_validate_json(budget.model_dump_json()) == budget


@pytest.mark.parametrize("stages", ["[calibrate,search,validate,export]", "[search]"])
def test_an_unreachable_server_is_said_before_a_model_is_loaded(stages, flowprune, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", load)
    code, printed = flowprune(f"stages={stages}", "tracking=server", "tracking.uri=http://127.0.0.1:9")
    assert code == 2 and "Traceback" not in printed
    assert "No MLflow tracking store answers at http://127.0.0.1:9" in " ".join(printed.split())
