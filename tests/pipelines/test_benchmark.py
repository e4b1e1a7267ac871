"""The benchmark stage: it measures what it says; no test asserts seconds."""

import json

import pytest

from multimodal.benchmark.stopwatch import Stopwatch
from pipelines.report_metrics import benchmarked

FEW = (
    *("stages=[benchmark]", "benchmark.repeats=1", "benchmark.samples=2", "benchmark.new_tokens=1"),
    *("benchmark.batches=[1]", "data.heldout=2", "budget.retention=0.2"),
)
SMALL_TOWER = (
    "{model_type:siglip_vision_model,hidden_size:32,intermediate_size:48,num_hidden_layers:3,num_attention_heads:2,"
    "image_size:56,patch_size:14}"
)
SMALL_TEXT = (
    "{model_type:qwen2,hidden_size:32,intermediate_size:48,num_hidden_layers:5,num_attention_heads:4,"
    "num_key_value_heads:2,vocab_size:99}"
)


def check_report(folder, batches=(1,)) -> dict:
    report = json.loads((folder / "run" / "benchmark.json").read_text())
    assert [case["batch"] for case in report["cases"]] == list(batches)
    for case in report["cases"]:
        rows = {row["variant"]: row for row in case["rows"]}
        assert rows["unpruned"]["first_token"] > 0 and rows["pruned"]["decoding"] > 0
        assert rows["pruned"]["parts"]["selection and merging"] > 0
    assert set(report["trial"]) == {"ours", "prefill", "released"} and min(report["trial"].values()) > 0
    return report


def test_a_real_model_without_a_search_measures_the_untuned_values(flowprune, tmp_path):
    code, printed = flowprune(*FEW, "benchmark.batches=[1,3]")
    assert code == 0, printed
    report = check_report(tmp_path, (1, 3))
    assert "untuned values" in printed and "bound" in printed
    assert set(benchmarked(report)) >= {"first_token_speed_up", "decoding_speed_up", "trial_speed_up"}


def test_a_method_that_prunes_inside_the_tower_is_measured_end_to_end(flowprune, tmp_path):
    code, printed = flowprune(*FEW, "method=flowcut")
    assert code == 0, printed
    assert check_report(tmp_path)["cases"][0]["retention"] < 0.25


@pytest.mark.parametrize("model_type", ["llava", "llava_onevision"])
def test_random_weights_of_a_named_architecture(model_type, flowprune, tmp_path):
    parts = [
        f"model_type:{model_type}",
        "image_token_id:7",
        f"text_config:{SMALL_TEXT}",
        f"vision_config:{SMALL_TOWER}",
    ]
    parts += ["vision_feature_layer:-1", "vision_feature_select_strategy:full"]
    parts += ["image_grid_pinpoints:[[112,112]]"] * (model_type == "llava_onevision")
    architecture = "model.architecture={" + ",".join(parts) + "}"
    sweep = ("benchmark.sweep=true", "benchmark.sizes=[112,56x112]", "benchmark.retentions=[0.5]")
    code, printed = flowprune(*FEW, *sweep, "model.weights=random", "model.device=cpu", architecture)
    assert code == 0, printed
    sizes = {cell["visual_tokens"] for cell in check_report(tmp_path)["sweep"]["cells"]}
    assert len(sizes) == 1 + (model_type == "llava_onevision") and "Batch 1, retention 0.5: " in printed
    assert (tmp_path / "run" / "break_even.png").read_bytes().startswith(b"\x89PNG")


def test_random_weights_need_an_architecture(flowprune):
    code, printed = flowprune(*FEW, "model.weights=random")
    assert code == 2 and "model.architecture.model_type" in printed
    code, printed = flowprune("stages=[search]", "model.weights=random")
    assert code == 2 and "set it to pretrained" in " ".join(printed.split())


def test_the_first_round_is_a_warm_up(monkeypatch):
    import torch

    times = iter([0, 9, 10, 12, 20, 23, 30, 34])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(4):
        watch.time("work", lambda: None)
    assert watch.medians() == {"work": 3}
