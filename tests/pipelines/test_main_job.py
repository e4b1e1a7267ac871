"""The main job from the command line, end to end, on a small random model."""

import csv
import json
import re
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from written_folder import write_folder

import pipelines.latency
from multimodal import PruningConfig, load_model, prune
from pipelines.data import Sample
from pipelines.data.scenes import scenes
from search.study import best_trial, outcome

SMOKE = ("experiment=smoke", "search.batch_size=3", "budget.retention=0.2")
CONTENDERS = {"unpruned", "tuned", "untuned", "uniform", "random"}


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        image.verify()
        return image.format == "PNG" and min(image.size) > 100


def study_of(folder: Path, name: str = "smoke") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/studies.db")


def runs_of(folder: Path, kind: str) -> list:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    assert experiment.name == "flowprune"
    return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))


def artifacts_of(folder: Path, path: str = "") -> set[str]:
    [parent] = runs_of(folder, "study")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, path or None)}


def check_outputs(output: Path, study: optuna.Study) -> None:
    """trials.csv, settings.json, validation.json and pruning.json say what the study says."""
    best = best_trial(study)
    with (output / "trials.csv").open(newline="") as file:
        rows = {int(row["trial"]): row for row in csv.DictReader(file)}
    assert set(rows) == {trial.number for trial in study.get_trials()}
    for trial in study.get_trials():
        row = rows[trial.number]
        assert row["state"] == outcome(trial)
        if trial.value is not None and row["state"] == "complete":
            assert float(row["discrepancy"]) == pytest.approx(trial.value)
        for name, value in trial.user_attrs["parameters"].items():
            assert row[name] == ("" if value is None else str(value))
        assert float(row["retention"]) <= 0.2

    config = PruningConfig.from_pretrained(output)
    assert config.provenance.trial == best.number and config.provenance.study == study.study_name
    assert config.provenance.calibration_discrepancy == pytest.approx(best.value)
    assert config.budget.asked == 0.2 and config.budget.met == pytest.approx(float(rows[best.number]["retention"]))
    assert config.model.layers == 5 and config.model.architecture == "LlavaForConditionalGeneration"
    plain = {"model", "budget", "provenance"}
    assert config.model_dump(mode="json", exclude=plain) == PruningConfig(**best.user_attrs["config"]).model_dump(
        mode="json", exclude=plain
    )

    report = json.loads((output / "validation.json").read_text())
    assert (report["tuned"]["study"], report["tuned"]["trial"]) == (study.study_name, best.number)
    assert report["tuned"] == PruningConfig.from_pretrained(output / "tuned.json").provenance.model_dump(mode="json")
    assert report["data_digest"] == config.provenance.heldout_digest != config.provenance.data_digest
    report = report["contenders"]
    assert set(report) == CONTENDERS
    assert report["unpruned"]["discrepancy"] == 0 and report["unpruned"]["agreement"] == 1
    assert config.provenance.heldout_discrepancy == report["tuned"]["discrepancy"]
    for name in CONTENDERS - {"unpruned"}:
        assert 0.1 < report[name]["retention"] <= 0.2 and 0 < report[name]["kv_share"] < 1
        assert report[name]["discrepancy"] > 0 and 0 <= report[name]["agreement"] <= 1
    assert report["tuned"]["lead"][0] == 0
    assert is_picture(output / "search.png")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("main_job")


@pytest.fixture
def in_shared(shared, flowprune):
    def run(*overrides: str) -> tuple[int, str]:
        return flowprune(
            *SMOKE,
            *overrides,
            f"output={shared}/run",
            f"cache={shared}/cache",
            f"storage.path={shared}/studies.db",
            f"tracking.uri=sqlite:///{shared}/mlflow.db",
            f"tracking.artifacts={shared}/artifacts",
        )

    return run


def test_the_main_job_from_nothing(in_shared, shared, model_path):
    code, printed = in_shared()
    assert code == 0, printed
    study, output = study_of(shared), shared / "run"
    assert len(study.get_trials()) == 4
    check_outputs(output, study)

    [parent] = runs_of(shared, "study")
    children = runs_of(shared, "trial")
    assert parent.info.status == "FINISHED" and parent.data.metrics["discrepancy"] == pytest.approx(study.best_value)
    assert {child.data.tags["trial"] for child in children} == {"0", "1", "2", "3"} and len(children) == 4
    assert {child.info.status for child in children} == {"FINISHED"}
    assert artifacts_of(shared) >= {"pruning.json", "trials.csv", "search.png", "settings.json", "validation.json"}

    model, _ = load_model(model_path)
    config = PruningConfig.from_pretrained(output / "pruning.json")
    with prune(model, config):
        pass


def test_the_exported_file_prunes_a_fresh_model(shared, model_path):
    model, processor = load_model(model_path)
    [sample] = scenes("test", 1)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[sample.image], text=text, return_tensors="pt")
    config = PruningConfig.from_pretrained(shared / "run")
    with prune(model, config) as pruner:
        model.generate(**inputs, max_new_tokens=2)
    [report] = pruner.report
    assert report.visual_tokens == 64 and 0.1 < report.retention <= 0.2
    assert report.retention == pytest.approx(config.budget.met)


@pytest.mark.usefixtures("unrendered")
def test_the_same_command_again_adds_nothing(in_shared, shared):
    before = [(trial.number, trial.params, trial.value) for trial in study_of(shared).get_trials()]
    exported = (shared / "run" / "pruning.json").read_bytes()
    cached = {path: path.stat().st_mtime_ns for path in (shared / "cache").rglob("*.safetensors")}
    code, printed = in_shared()
    assert code == 0, printed
    assert [(trial.number, trial.params, trial.value) for trial in study_of(shared).get_trials()] == before
    assert len(runs_of(shared, "study")) == 1 and len(runs_of(shared, "trial")) == 4
    assert (shared / "run" / "pruning.json").read_bytes() == exported
    assert {path: path.stat().st_mtime_ns for path in (shared / "cache").rglob("*.safetensors")} == cached


@pytest.mark.usefixtures("unrendered")
def test_more_trials_go_on_with_the_study(in_shared, shared):
    code, printed = in_shared("stages=[search]", "search.trials=6")
    assert code == 0, printed
    assert len(study_of(shared).get_trials()) == 6 and len(runs_of(shared, "trial")) == 6
    report = shared / "run" / "validation.json"
    measured, tuned = json.loads(report.read_text()), PruningConfig.from_pretrained(shared / "run" / "tuned.json")
    this = tuned.provenance.model_dump(mode="json")
    for other, known in [({}, True), ({"trial": 99}, False), ({"calibration_discrepancy": 0.5}, False)]:
        report.write_text(json.dumps(measured | {"tuned": this | other}))
        code, printed = in_shared("stages=[export]")
        origin = PruningConfig.from_pretrained(shared / "run").provenance
        assert code == 0 and (origin.heldout_discrepancy is not None) == known, printed


@pytest.mark.usefixtures("unrendered")
def test_sync_fills_an_emptied_store_and_then_changes_nothing(in_shared, shared):
    client, trials = MlflowClient(f"sqlite:///{shared}/mlflow.db"), study_of(shared).get_trials()
    before, kept = artifacts_of(shared), artifacts_of(shared, "overlays")
    assert before >= {"importance.png", "parallel.png", "search.png", "trials.csv", "overlays"} and kept == {"00.png"}
    for run in [*runs_of(shared, "study"), *runs_of(shared, "trial")]:
        client.delete_run(run.info.run_id)
    code, printed = in_shared("stages=[sync]", "search.trials=6")
    assert code == 0 and "MLflow agrees with smoke" in " ".join(printed.split()), printed
    assert {run.data.tags["trial"] for run in runs_of(shared, "trial")} == {str(number) for number in range(6)}
    assert artifacts_of(shared) == before and artifacts_of(shared, "overlays") == kept
    code, printed = in_shared("stages=[sync]", "budget.retention=0.6")  # the study knows its own
    assert code == 0 and "0 changes: MLflow agrees" in " ".join(printed.split()), printed
    [parent] = runs_of(shared, "study")
    study = study_of(shared)
    optuna.delete_study(study_name="smoke", storage=f"sqlite:///{shared}/studies.db")
    code, printed = in_shared("stages=[sync]", "search.trials=6", f"run_id={parent.info.run_id}")
    assert code == 0 and "0 changes: MLflow agrees" in " ".join(printed.split()), printed
    restored = study_of(shared)
    assert restored.user_attrs == study.user_attrs and restored.metric_names == ["discrepancy"]
    for ours, theirs in zip(restored.get_trials(), trials, strict=True):
        assert vars(ours) | {"_trial_id": 0} == vars(theirs) | {"_trial_id": 0}
    code, printed = in_shared("stages=[sync]", "study=other")
    assert code == 2 and "has no study 'other'" in " ".join(printed.split()), printed


def test_other_settings_are_refused(in_shared):
    code, printed = in_shared("stages=[search]", "budget.retention=0.3")
    assert code == 2 and "retention was 0.2 and is 0.3" in " ".join(printed.split()) and "Traceback" not in printed


def test_pictures(in_shared, shared):
    code, printed = in_shared("stages=[maps,generate]", "maps.samples=2", "generate.max_new_tokens=2")
    assert code == 0, printed
    output = shared / "run"
    assert all(map(is_picture, [output / "maps" / "00.png", output / "maps" / "01.png", output / "generate.png"]))
    assert artifacts_of(shared, "maps") == {"00.png", "01.png"}


def test_generate_on_an_image_of_ones_own(in_shared, shared):
    Image.new("L", (50, 90), 128).save(shared / "own.jpg")
    code, printed = in_shared(
        "stages=[generate]", f"generate.image={shared}/own.jpg", "generate.question='What is [/it]?'"
    )
    assert code == 0 and "What is [/it]?" in printed, printed
    (shared / "none.jpg").write_text("no picture")
    code, printed = in_shared("stages=[generate]", f"generate.image={shared}/none.jpg")
    assert code == 2 and "cannot be read" in " ".join(printed.split()) and "Traceback" not in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:100], "is not a readable JSON file"),
        (lambda text: text.replace('"keep_ratio": ', '"keep_ratio": 7'), "keep_ratio is 7"),
        (lambda text: text.replace("LlavaFor", "QwenFor"), "but the model is a LlavaForConditionalGeneration"),
    ],
    ids=["cut", "ratio", "architecture"],
)
@pytest.mark.parametrize("stage", ["generate", "maps"])
def test_a_corrupt_config_is_refused(stage, change, message, in_shared, shared):
    bad = shared / "bad.json"
    bad.write_text(change((shared / "run" / "pruning.json").read_text()))
    code, printed = in_shared(f"stages=[{stage}]", f"{stage}.config={bad}")
    assert code == 2 and "Traceback" not in printed and message in " ".join(printed.split())


def test_a_missing_model_is_one_sentence(flowprune):
    code, printed = flowprune("stages=[calibrate]", "experiment=smoke", "model.path=/nowhere/at/all")
    said = " ".join(printed.split())
    assert code == 2 and "error: The model /nowhere/at/all does not exist: give 'tiny', 'dino', a local folder" in said
    assert "Traceback" not in printed


def test_several_budgets_in_one_study(flowprune, tmp_path):
    front = ("experiment=smoke", "search=pareto", "search.batch_size=3", "search.trials=6", "data.heldout=4")
    code, printed = flowprune(*front, "budget.retention=[0.5,0.2]")
    assert code == 0, printed
    study, output = study_of(tmp_path), tmp_path / "run"
    assert len(study.directions) == 2 and is_picture(output / "pareto.png")
    for trial in study.get_trials():
        asked, met = (trial.user_attrs["config"]["budget"][name] for name in ("asked", "met"))
        assert trial.values[1] == met == pytest.approx(trial.user_attrs["retention"]) and asked - 0.05 < met <= asked
    for budget in (0.2, 0.5):
        folder = output / f"retention-{budget}"
        config = PruningConfig.from_pretrained(folder)
        report = json.loads((folder / "validation.json").read_text())["contenders"]
        assert config.budget.asked == budget and budget - 0.05 < config.budget.met <= budget
        assert report["tuned"]["discrepancy"] == config.provenance.heldout_discrepancy
        alike = [t for t in study.get_trials() if t.user_attrs["config"]["budget"]["asked"] == budget]
        assert config.provenance.trial == min(alike, key=lambda trial: trial.values[0]).number
        assert artifacts_of(tmp_path, f"retention-{budget}") >= {"tuned.json", "pruning.json", "validation.json"}
    assert artifacts_of(tmp_path) >= {"trials.csv", "pareto.png", "settings.json"}

    code, printed = flowprune(*front, "budget.retention=0.5", "stages=[maps]", "maps.samples=1")
    assert code == 0, printed
    assert is_picture(output / "retention-0.5" / "maps" / "00.png") and not (output / "retention-0.2" / "maps").exists()
    code, printed = flowprune(*front, "budget.retention=0.3", "stages=[maps]")
    assert code == 2 and "retention-0.3 holds no tuned config" in " ".join(printed.split())


@pytest.mark.usefixtures("unrendered")
def test_a_budget_in_milliseconds(flowprune, tmp_path, monkeypatch):
    on_budget = ("experiment=smoke", "search.batch_size=3", "budget=latency_ms")
    assert flowprune(*on_budget, "budget.latency_ms=0.001", "stages=[search]")[0] == 2
    [file] = tmp_path.glob("cache/*/latency-*.json")
    measured = json.loads(file.read_text())
    measured |= {
        "milliseconds": [0.1 * tokens for tokens in measured["tokens"]],
        "pruning": 1.0,
    }  # busy cores are noisy
    file.write_text(json.dumps(measured))
    code, printed = flowprune(*on_budget, "budget.latency_ms=0.001", "stages=[search]")
    least = re.search(r"is left in any case .*ask for at least ([\d.]+\d)", " ".join(printed.split()))
    assert code == 2 and least
    budget = (3 * float(least[1]) + measured["pruning"] + measured["milliseconds"][-1]) / 4
    on_budget += (f"budget.latency_ms={budget}",)
    code, printed = flowprune(*on_budget, "stages=[calibrate,search,export]")
    assert code == 0, printed
    met = PruningConfig.from_pretrained(tmp_path / "run").budget
    assert (met.measure, met.asked) == ("latency_ms", budget) and 0.5 * budget < met.met <= budget
    with (tmp_path / "run" / "trials.csv").open(newline="") as rows:
        assert all(float(row["latency_ms"]) <= budget for row in csv.DictReader(rows))

    file.unlink()  # the study has it
    code, printed = flowprune(*on_budget, "stages=[search]", "search.trials=5")
    assert code == 0 and not file.exists() and len(study_of(tmp_path).get_trials()) == 5, printed
    monkeypatch.setattr(pipelines.latency, "device_name", lambda device: "another")
    code, printed = flowprune(*on_budget, "stages=[search]", "search.trials=6")
    assert code == 2 and "and this is another: run it there" in " ".join(printed.split())


def test_a_folder_of_ones_own_without_answers(flowprune, tmp_path):
    samples = [Sample.asking(s.image.resize((300, 120)), s.question) for s in scenes("test", 9)]
    write_folder(samples, tmp_path / "data")
    code, printed = flowprune(*SMOKE, "data=folder", f"data.path={tmp_path}/data", "data.calibration=5")
    assert code == 0, printed
    check_outputs(tmp_path / "run", study_of(tmp_path))
    report = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert {row["accuracy"] for row in report["contenders"].values()} == {None}
