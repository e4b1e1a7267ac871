"""The compare stage from the command line, end to end: on the shipped model, resumed, with a method of one's own."""

import csv
import json
import re
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient

import pipelines.model
from multimodal.methods import Method
from pipelines.comparison.measurement import Measured

OWN = '''
"""Keep the tokens nearest to the picture's left edge."""
from typing import Annotated, Literal

from torch import Tensor

from multimodal.methods import Method, SearchRange, VisualTokens


class FromTheLeft(Method):
    """A column at a time, rows weighed a little."""

    name: Literal["from_the_left"] = "from_the_left"
    slant: Annotated[float, SearchRange(0, 1)] = 0.0

    def score(self, tokens: VisualTokens) -> Tensor:
        grid, row, column = tokens.layout.cells.unbind(1)
        return -(column + self.slant * row)[tokens.index].float()
'''
SMALL = (
    "stages=[compare]",
    "compare.methods=[from_the_left]",
    "compare.tuned=true",
    "compare.repeats=1",
    "compare.timed=1",
    "compare.pictures=1",
    "search.trials=3",
    "search.steps=9",
    "search.startup=2",
    "maps.samples=1",
    "data.calibration=4",
    "data.heldout=8",
)


@pytest.fixture
def own_method(tmp_path_factory):
    path = tmp_path_factory.mktemp("extension") / "left.py"
    path.write_text(OWN)
    yield path
    Method.registry.pop("from_the_left", None)


def runs_of(folder: Path, kind: str) -> list:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [each for each in client.search_experiments() if each.name != "Default"]
    return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))


def test_methods_side_by_side(flowprune, tmp_path, own_method, monkeypatch):
    monkeypatch.setattr(
        "pipelines.stages.search.write_ranked", lambda settings, trials: []
    )  # slow, and tested elsewhere
    command = (*SMALL, f"extensions=[{own_method}]", "model=tiny", "compare.budgets=[0.2]")
    code, printed = flowprune(*command, without=("model.path", "model.name"))
    assert code == 0, printed
    folder = tmp_path / "run" / "compare"
    with (folder / "comparison.csv").open(newline="") as file:
        rows = {(row["method"], row["variant"], row["budget"]): row for row in csv.DictReader(file)}
    pruned = {
        (method, variant, "0.2")
        for method in ("from_the_left", "random")  # which joins by itself
        for variant in ("published", "tuned")
    }
    assert set(rows) == {*pruned, ("downscale", "downscaled", "0.2"), ("none", "unpruned", "")}
    for key in pruned:
        row, asked = rows[key], float(key[2])
        assert asked - 0.01 < float(row["retention"]) <= asked and float(row["flops_share"]) < 0.6
        low, found, high = (float(row[f"heldout_accuracy{end}"]) for end in ("_low", "", "_high"))
        assert low <= found <= high
        assert row["trials"] == ("3" if key[1] == "tuned" else "")

    page = (folder / "comparison.html").read_text()
    assert not re.search(r"(?:src|href)=['\"]?(?:http|/)|@import|<link", page)  # self-contained
    assert page.count("<svg") == 2 and page.count("data:image/jpeg") == 3 and "At retention 0.2 use " in page
    assert json.loads((folder / "comparison.json").read_text())["samples"] == 8

    database = f"sqlite:///{tmp_path}/studies.db"
    names = optuna.get_all_study_names(database)
    assert sorted(names) == ["tiny-from_the_left-0.2", "tiny-random-0.2"]
    assert {len(optuna.load_study(study_name=name, storage=database).get_trials()) for name in names} == {3}
    [parent], children = runs_of(tmp_path, "comparison"), runs_of(tmp_path, "contender")
    assert len(children) == len(rows) and len(runs_of(tmp_path, "trial")) == 6
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    one = next(c for c in children if c.info.run_name == "from_the_left tuned, retention 0.2")
    assert one.data.params == {
        "model": "tiny", "method": "from_the_left", "variant": "tuned", "budget_measure": "retention", "budget": "0.2",
    }  # fmt: skip
    for name in ("heldout_accuracy", "speed_up", "retention", "lead_over_random"):
        assert one.data.metrics[name] == pytest.approx(float(rows["from_the_left", "tuned", "0.2"][name]))
    artifacts = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").list_artifacts(parent.info.run_id)
    assert {file.path for file in artifacts} >= {"comparison.csv", "comparison.html", "comparison.json"}

    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-*.json")}
    assert len(kept) == len(rows)
    for path in kept:
        found = Measured.model_validate_json(path.read_text())
        assert len(found.right) == len(found.discrepancies) == len(found.divergences) == 8
    monkeypatch.setattr("pipelines.grading.greedy_answers", None)  # nothing is measured again
    monkeypatch.setattr("pipelines.stages.search.run", None)
    code, printed = flowprune(*command, without=("model.path", "model.name"))
    assert code == 0, printed
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*-*.json")} == kept
    assert [run.info.run_id for run in runs_of(tmp_path, "comparison")] == [parent.info.run_id]
    code, printed = flowprune(*command, "data.calibration=5", without=("model.path", "model.name"))
    assert code == 2 and "choose another compare.name=NAME" in " ".join(printed.split())


def test_what_serving_costs(flowprune, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.stages.search.write_ranked", lambda settings, trials: [])
    small = [each for each in SMALL if "methods" not in each and "tuned" not in each and "steps" not in each]
    command = ("serving=vllm", "compare.methods=[divprune,fastv]", "compare.tuned=[divprune,fastv]")
    code, printed = flowprune(*small, *command, "budget.retention=0.4")
    assert code == 0, printed
    with (tmp_path / "run" / "compare" / "comparison.csv").open(newline="") as file:
        rows = {(row["method"], row["variant"]): row for row in csv.DictReader(file)}
    assert {variant for method, variant in rows if method == "divprune"} == {"published", "tuned", "servable"}
    assert {variant for method, variant in rows if method == "fastv"} == {"published", "tuned"}
    assert {row["lead_over_unrestricted"] != "" for key, row in rows.items() if key[1] == "servable"} == {True}
    searches = tmp_path / "run" / "compare" / "searches"
    steps = {path.parent.name: json.loads(path.read_text())["schedule"] for path in searches.glob("*/tuned.json")}
    assert {name: len(found) for name, found in steps.items()} == {
        "divprune-0.4": 3, "divprune-0.4-vllm": 1, "fastv-0.4": 3,
    }  # fmt: skip
    said = " ".join(printed.split())
    assert "left out: fastv servable: serving=vllm cannot take method=fastv" in said
    assert "Of what can be served, divprune servable is the most accurate" in said


@pytest.mark.usefixtures("unrendered")
def test_a_search_of_ones_own_method(flowprune, tmp_path, own_method):
    code, printed = flowprune(
        "experiment=smoke", f"extensions=[{own_method}]", "method=custom", "method.name=from_the_left",
        "budget.retention=0.3", "search.objective=kl", "stages=[calibrate,search,export]",
    )  # fmt: skip
    assert code == 0, printed
    exported = json.loads((tmp_path / "run" / "pruning.json").read_text())
    assert exported["method"]["name"] == "from_the_left" and 0 <= exported["method"]["slant"] <= 1
    assert exported["provenance"]["objective"] == "kl"
    [study], trials = runs_of(tmp_path, "study"), runs_of(tmp_path, "trial")
    assert study.data.metrics["next_token_kl"] == exported["provenance"]["calibration_discrepancy"]
    assert not any("discrepancy" in trial.data.metrics for trial in trials)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["compare.methods=[fastv,nope]"], r"There is no method 'nope': choose one of .*fastv"),
        (["compare.methods=[]"], r"compare\.methods is \[\]"),
        (["compare.budgets=[0.5,1.5]"], r"compare\.budgets has 1\.5: give shares of the unpruned model's retention"),
        (["compare.budgets=[]"], r"compare\.budgets is empty"),
        (["budget=latency_ms", "budget.latency_ms=4"], r"compare counts what each method spends: set budget to"),
        (["compare.bootstrap=3"], r"compare\.bootstrap is 3"),
        (["compare.methods=[random]", "compare.tuned=[fastv]"], r"compare\.tuned names fastv, which is not compared"),
        (["serving=vllm"], r"serving=vllm is compared as searches find it, .*: add compare\.tuned=true"),
        (["compare.tuned=true", "tracking.uri=http://127.0.0.1:9"], r"No MLflow tracking store answers"),
        (["extensions=[/nowhere/my.py]"], r"extensions: /nowhere/my\.py is no Python file that exists"),
        (["method=custom"], r"method\.name"),
    ],
)
def test_a_wrong_value_is_one_sentence(overrides, message, flowprune, monkeypatch):
    monkeypatch.setattr(pipelines.model, "load_model", None)  # before any work
    code, printed = flowprune("stages=[compare]", *overrides)
    printed = " ".join(printed.split())
    assert code == 2 and "Traceback" not in printed
    [sentence] = re.findall(r"error: (.*)", printed)
    assert re.search(message, sentence)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_that_name", r"cannot be imported \(ModuleNotFoundError: No module named .*\): mend it"),
        ("def broken(:", r"cannot be imported \(SyntaxError: "),
        (OWN.replace("from_the_left", "fastv"), r"There are two methods 'fastv'"),
    ],
)
def test_a_broken_extension_is_one_sentence(code, message, flowprune, tmp_path):
    (tmp_path / "my.py").write_text(code)
    status, printed = flowprune("stages=[compare]", f"extensions=[{tmp_path}/my.py]")
    assert status == 2 and "Traceback" not in printed
    assert re.search(message, " ".join(printed.split()))
