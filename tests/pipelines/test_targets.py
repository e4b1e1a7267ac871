"""export with a target, from the command line: what is written beside the config, and who is refused, and when."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Qwen2VLImageProcessor

import pipelines.targets
from multimodal import PruningConfig, PruningStep
from multimodal.layout import Layout
from pipelines.targets import write_target

PYTHON = Path(os.environ.get("FLOWPRUNE_VLLM", Path(__file__).parents[2] / ".vllm/bin/python"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target=sglang"], r"target is 'sglang': input should be 'vllm', 'openvino', 'tensorrt-edge', "),
        (["target=vllm", "stages=[search]"], r"target=vllm is of the export stage: add export to stages"),
        (["target=vllm"], r"target=vllm takes one step before the language model: add serving=vllm"),
        (
            ["target=openvino"],
            r"target=openvino takes one step of cdpruner alone: search with method=cdpruner search\.",
        ),
        (["target=openvino", "method=cdpruner"], r"target=openvino takes one step of cdpruner alone"),
        (["target=tensorrt-edge", "serving=vllm"], r"search with method=dart search\.steps=1"),
    ],
)
def test_a_search_for_a_target_is_checked_before_work(overrides, message, flowprune, monkeypatch):
    monkeypatch.setattr("pipelines.model.load_model", None)
    code, printed = flowprune(*overrides)
    [sentence] = re.findall(r"error: (.*)", " ".join(printed.split()))
    assert code == 2 and re.search(message, sentence)


@pytest.fixture
def exported(flowprune, tmp_path, monkeypatch):
    """Exports a config by hand for a target: called with overrides, it returns the code and what was printed."""

    def export(config: PruningConfig, *overrides: str, without: Sequence[str] = ()) -> tuple[int, str]:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        (folder / "tuned.json").write_text(config.model_dump_json())
        for name in ("keep_with_study", "register_with_study", "say_how_to_compare"):
            monkeypatch.setattr(f"pipelines.stages.export.{name}", lambda *_: None)  # there is no study
        return flowprune("stages=[export]", *overrides, without=without)

    return export


def config(name: str, *steps: tuple[int, float], **more: Any) -> PruningConfig:
    return PruningConfig(
        method={"name": name}, schedule=[PruningStep(layer=layer, keep_ratio=ratio) for layer, ratio in steps], **more
    )


def test_vllm_gets_weights_that_it_reads(exported, tmp_path):
    seen = tmp_path / "python"  # stands for one that has vLLM
    seen.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$3" "$4" > "$0.asked"\necho noise\necho \'{"vllm": "0.32", "plugin": true}\'\n'
    )
    seen.chmod(0o755)
    asked = ("target=vllm", "engine=vllm", f"engine.python={seen}")
    code, printed = exported(config("divprune", (0, 0.25)), *asked)
    assert code == 0, printed
    written = json.loads((tmp_path / "run" / "vllm.json").read_text())
    folder = tmp_path / "run" / "vllm-model"
    assert written["arguments"]["model"] == str(folder) and written["keep_ratio"] == 0.25
    assert "--enable-mm-embeds" in written["arguments"]["vllm_serve"]
    assert written["commands"][0].startswith("flowprune serve model=path ")
    model, overrides = (tmp_path / "python.asked").read_text().splitlines()
    assert model == str(folder) and json.loads(overrides) == written["arguments"]["hf_overrides"] != {}
    assert "vLLM 0.32 loads every weight" in printed
    before = (folder / "model.safetensors").stat().st_mtime_ns
    code, printed = exported(config("divprune", (0, 0.5), positions="compact"), *asked)
    assert code == 0 and (folder / "model.safetensors").stat().st_mtime_ns == before  # not written again
    seen.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    code, printed = exported(config("divprune", (0, 0.25)), *asked)
    assert code == 2 and "vllm-model (no such module): see" in " ".join(printed.split())


@pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM here: make vllm")
def test_a_real_vllm_loads_every_weight(exported):
    shipped = ("model=tiny", "target=vllm", "engine=vllm", f"engine.python={PYTHON}")
    code, printed = exported(config("divprune", (0, 0.25)), *shipped, without=("model.path", "model.name"))
    assert code == 0 and re.search(r"vLLM 0\.\d+\.\d+ loads every weight", printed), printed


def test_what_a_target_cannot_express_is_refused_with_the_nearest(exported, tmp_path):
    inner = config("divprune", (0, 0.5), (1, 0.5))  # five layers: (0.5 + 4 · 0.25) / 5 = 0.3
    for target, sentence in (
        ("vllm", "the nearest config that it can has one step at layer 0 with keep_ratio 0.3 (the same retention)"),
        ("openvino", "or give it pruning_ratio=70, which has the same retention"),
        ("pixels", "The model takes pictures of one size"),
        ("vllm-video", "vLLM prunes videos of Qwen2_5_VLForConditionalGeneration"),
    ):
        code, printed = exported(inner, f"target={target}")
        assert code == 2 and sentence in " ".join(printed.split())
        assert not (tmp_path / "run" / f"{target}.json").exists()


def test_openvino_from_the_command_line(exported, tmp_path):
    code, printed = exported(config("cdpruner", (0, 0.25)), "target=openvino")
    assert code == 0 and "--pruning_ratio 75 --relevance_weight 1" in " ".join(printed.split())
    assert json.loads((tmp_path / "run" / "openvino.json").read_text())["arguments"]["pruning_ratio"] == 75


def test_pixels_of_a_processor_that_takes_any_size(tmp_path, monkeypatch):
    layouts = {"first": [Layout(((5, 2),))], "second": [Layout(((10, 10),)), Layout(((10, 19),))]}
    monkeypatch.setattr(pipelines.targets, "check_fits", lambda *_: None)
    monkeypatch.setattr(pipelines.targets, "build_inputs", lambda opened, samples: samples[0])
    monkeypatch.setattr(pipelines.targets, "shown_layouts", lambda geometry, inputs: layouts[inputs])
    workspace: Any = SimpleNamespace(
        settings=SimpleNamespace(target="pixels"),
        samples=lambda part: list(layouts),
        model=SimpleNamespace(
            processor=SimpleNamespace(image_processor=Qwen2VLImageProcessor()),
            modules=SimpleNamespace(geometry=None, text_layers=range(28)),
        ),
    )
    path = write_target(workspace, config("vflowopt", (0, 0.3)).save_pretrained(tmp_path))
    assert json.loads(path.read_text())["arguments"] == {
        "max_pixels": 40 * 28 * 28, "min_pixels": 56 * 56, "image_max_tokens": 40,  # 90 of 300: 10 + 40 + 40
    }  # fmt: skip
