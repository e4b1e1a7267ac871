"""Weights under names that vLLM reads, as safetensors itself reads them; none of them changes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal.loading import SHIPPED
from multimodal.serving.vllm_weights import is_readable, readable, write_readable


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"),
        ("model.vision_tower.embeddings.x", "model.vision_tower.vision_model.embeddings.x"),
        ("vision_tower.vision_model.embeddings.x", "vision_tower.vision_model.embeddings.x"),  # of an older checkpoint
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("multi_modal_projector.linear_1.bias", "multi_modal_projector.linear_1.bias"),
    ],
)
def test_names(name, read):
    assert readable(name) == read


def test_the_shipped_model(tmp_path):
    assert not is_readable(SHIPPED["tiny"])
    write_readable(SHIPPED["tiny"], tmp_path / "out")
    assert is_readable(tmp_path / "out") and not (tmp_path / "out.part").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (SHIPPED["tiny"], tmp_path / "out"))
    assert sum(name.startswith("vision_tower.vision_model.") for name in after) == sum(
        name.startswith("vision_tower.") for name in before
    )
    assert {name.replace("vision_model.", ""): value.dtype for name, value in after.items()} == {
        name: value.dtype for name, value in before.items()
    }
    assert all(torch.equal(value, before[name.replace("vision_model.", "")]) for name, value in after.items())
    copied = {path.name for path in (tmp_path / "out").iterdir()}
    assert copied >= {"config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json"}


def test_shards_and_their_index(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shards = {
        "a.safetensors": {"vision_tower.x": torch.arange(5, dtype=torch.bfloat16), "image_newline": torch.ones(3)},
        "b.safetensors": {"language_model.lm_head.weight": torch.full((7, 2), 2.5)},
    }
    for name, weights in shards.items():
        save_file(weights, source / name, metadata={"format": "pt"})
    places = {weight: name for name, weights in shards.items() for weight in weights}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (source / "pytorch_model.bin").write_bytes(b"pickled")
    target.mkdir()
    (target / "old.json").write_text("{}")
    write_readable(source, target)
    index = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["vision_tower.vision_model.x"] == index["image_newline"] == "a.safetensors"
    for name, shard in index.items():
        original = shards[shard][name.replace("vision_model.", "")]
        assert torch.equal(load_file(target / shard)[name], original)
    assert {path.name for path in target.iterdir()} == {*shards, "model.safetensors.index.json"}
