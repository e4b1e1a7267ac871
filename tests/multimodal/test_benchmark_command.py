"""``python -m multimodal.benchmark`` on a model of few and narrow layers; no test asserts seconds."""

import subprocess
import sys

import pytest
import torch

from multimodal import prune
from multimodal.benchmark import run as running
from multimodal.benchmark.__main__ import main
from multimodal.benchmark.parts import EVIDENCE, PREFILL, SELECTION, TOWER
from multimodal.benchmark.report import Report
from multimodal.benchmark.variants import ALL, COMPILED, PRUNED, RECORDED, UNPRUNED

FORBIDDEN = (
    "hydra",
    "omegaconf",
    "optuna",
    "mlflow",
    "rich",
    "sqlalchemy",
    "matplotlib",
    "datasets",
    "search",
    "pipelines",
)
MODEL = """
name: mine
architecture:
  model_type: llava_next
  image_token_id: 7
  image_grid_pinpoints: [[56, 56], [112, 112]]
  vision_feature_layer: -1
  text_config: {model_type: qwen2, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 5,
    num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 99}
  vision_config: {model_type: clip_vision_model, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 3,
    num_attention_heads: 2, image_size: 56, patch_size: 14}
"""


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "mine.yaml").write_text(MODEL)
    return f"{tmp_path}/mine.yaml"


def test_one_run_tells_all(model, tmp_path, capsys):
    few = ["--repeats", "1", "--new-tokens", "2", "--text-tokens", "6", "--device", "cpu"]
    sweep = ["--sweep", "--sizes", "56", "112", "--retentions", "0.5"]
    assert main([f"{model}@112x112", "--batches", "1", "2", *few, *sweep, "--out", str(tmp_path / "out")]) == 0
    report = Report.model_validate_json((tmp_path / "out" / "cpu.json").read_text())
    assert [(case.model, case.image, case.batch) for case in report.cases] == [("mine", "112x112", n) for n in (1, 2)]
    for case in report.cases:
        assert (case.visual_tokens, case.text_tokens) == (16 + 8 * 9, 6) and case.retention == pytest.approx(
            0.1, abs=0.05
        )
        assert [row.variant for row in case.rows] == list(ALL)
        for row in case.rows:
            assert row.failed is None and row.decoding > 0 and row.peak_bytes is None
            assert sum(row.parts.values()) == pytest.approx(row.first_token)
            assert row.parts[TOWER] > 0 and row.parts[PREFILL] > 0
            assert (row.parts[EVIDENCE] > 0) == (row.variant in (PRUNED, RECORDED))
            assert (row.parts[SELECTION] > 0) == (row.variant == PRUNED)
            assert row.first_token_bound > 0 and 0 < row.decoding_bound < row.first_token_bound
            assert row.first_token_host.counts["operators"] > 100 and row.first_token_host.busy is None
        assert case.row(PRUNED).first_token_bound < case.row(UNPRUNED).first_token_bound
        assert case.row(COMPILED).note.startswith("not compiled") and case.row(RECORDED).recorded_bytes > 0
    assert [(c.image, c.visual_tokens, c.batch) for c in report.sweep.cells] == [
        (image, tokens, batch) for image, tokens in (("56x56", 36), ("112x112", 88)) for batch in (1, 2)
    ]
    page = (tmp_path / "out" / "cpu.md").read_text()
    assert page in capsys.readouterr().out and "| mine (88), 2 |" in page and "Batch 1, retention 0.5: " in page


def test_a_table_is_measured_again_and_compared(model, tmp_path, capsys, monkeypatch):
    few = ["--batches", "1", "--repeats", "1", "--new-tokens", "1", "--device", "cpu"]
    assert main(["--check", str(tmp_path), "--device", "cpu"]) == 2
    assert "There is no table for cpu: make it with `python -m multimodal.benchmark" in capsys.readouterr().err
    assert main([model, *few, "--out", str(tmp_path)]) == 0
    kept = Report.model_validate_json((tmp_path / "cpu.json").read_text())
    monkeypatch.setattr("multimodal.benchmark.__main__.run", lambda arguments, say: measured(arguments))
    slower = {UNPRUNED: 1, PRUNED: 2, RECORDED: 1, COMPILED: 2}

    def measured(arguments) -> Report:
        assert arguments.shapes == [model] and arguments.new_tokens == 1
        rows = [
            row.model_copy(update={"first_token": row.first_token and row.first_token * slower[row.variant]})
            for row in kept.cases[0].rows
        ]
        return kept.model_copy(update={"cases": [kept.cases[0].model_copy(update={"rows": rows})]})

    assert main(["--check", str(tmp_path), "--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "pruned: speed-up of the first token fell from" in printed and "1 of " in printed.splitlines()[-1]
    slower[PRUNED] = 1
    assert main(["--check", str(tmp_path), "--device", "cpu"]) == 0


def test_a_variant_that_fails_says_why_in_its_row(model, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel  image\nis available.")

    monkeypatch.setattr("multimodal.benchmark.variants.prune", broken)
    arguments = running.Arguments(shapes=[model], batches=[1], repeats=1, new_tokens=1, device="cpu")
    [case] = running.run(arguments, lambda _: None).cases
    assert case.row(PRUNED).failed == "RuntimeError: no kernel image is available"
    assert case.row(UNPRUNED).first_token > 0 and case.row(COMPILED).first_token > 0


def test_what_cannot_be_recorded_says_why_in_its_row(model, monkeypatch):
    def recordless(self, key, make, **_) -> None:
        self.decline("of a test")

    monkeypatch.setattr("multimodal.recording.recordings.Recordings.record", recordless)
    arguments = running.Arguments(shapes=[model], batches=[1], repeats=1, new_tokens=1, device="cpu")
    [case] = running.run(arguments, lambda _: None).cases
    assert case.row(RECORDED).failed == "Not recorded, read the eager way: of a test"
    assert case.row(PRUNED).first_token > 0


def test_a_variant_that_fails_later_is_left_out_from_there_on(model, monkeypatch):
    calls = iter(range(100))

    def breaking(*given, **options):
        if next(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return prune(*given, **options)

    monkeypatch.setattr("multimodal.benchmark.variants.prune", breaking)
    arguments = running.Arguments(shapes=[model], batches=[1], repeats=2, new_tokens=1, device="cpu")
    [case] = running.run(arguments, lambda _: None).cases
    assert {case.row(name).failed for name in (PRUNED, RECORDED)} == {"does not fit into the device's memory"}
    assert case.row(UNPRUNED).first_token > 0


def test_when_the_time_is_over_rows_say_so(model):
    arguments = running.Arguments(shapes=[model], batches=[1, 2], repeats=1, new_tokens=1, device="cpu", minutes=1e-9)
    first, second = running.run(arguments, lambda _: None).cases
    assert all(row.first_token > 0 for row in first.rows)  # a shape's first batch has its time
    assert {row.failed for row in second.rows} == {"left out: the time was over"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "There is no model file"),
        (["llava_next_7b", "llava_1_5_7b", "--sweep"], "A sweep is of one model"),
        (["llava_next_7b", "--batches", "0"], "A batch holds one prompt at least"),
        (["llava_next_7b", "--retention", "0"], "retention is 0.0"),
        (["llava_next_7b", "--dtype", "half-size"], "dtype 'half-size' is none of torch"),
        (["llava_next_7b", "--sizes", "3x4x5"], "image size '3x4x5' is none"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_it_needs_torch_transformers_and_pydantic_alone():
    program = f"""
import sys
sys.modules.update(dict.fromkeys({FORBIDDEN!r}))  # importing one of them fails
from multimodal.benchmark.__main__ import main
main(["--help"])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "--retention" in run.stdout, run.stderr
