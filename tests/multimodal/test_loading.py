"""Checkpoints that are not what they should be: one sentence each, before anything is random."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from multimodal import FlowpruneError, PruningConfig, PruningStep, load_model, prune
from multimodal.loading import SHIPPED

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
NORM = "language_model.model.layers.0.post_attention_layernorm.weight"


def change(folder: Path, by) -> None:
    save_file(by(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def prefixed(folder):
    change(folder, lambda weights: {f"x.{name}": weight for name, weight in weights.items()})


def one_is_missing(folder):
    change(folder, lambda weights: {name: weight for name, weight in weights.items() if name != NORM})


def of_another_shape(folder):
    change(folder, lambda weights: weights | {NORM: torch.ones(3)})


def a_pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n")


def cut_off(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def without_weights(folder):
    (folder / WEIGHTS).unlink()


def without_a_processor(folder):
    (folder / "processor_config.json").unlink()


def without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def with_another_processor_file(folder):
    (folder / "processor_config.json").write_text("[]")


def without_heads(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_attention_heads"] = 0
    (folder / "config.json").write_text(json.dumps(config))


def with_half_a_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (prefixed, "lacks 166 of the model's weights, such as lm_head.weight, and has 165 others"),
        (one_is_missing, "lacks 1 of the model's weights, such as model.language_model.layers.0.post_attention"),
        (of_another_shape, r"of shape \[3\], and its config.json asks for \[128\]"),
        (a_pointer, "is a Git LFS pointer, not weights: run git lfs pull"),
        (cut_off, "is broken or cut off .*: download it again"),
        (pickled, "pytorch_model.bin is pickled"),
        (without_weights, "No model could be read"),
        (without_a_processor, "No model could be read"),
        (without_a_tokenizer, "No model could be read"),
        (with_half_a_config, "No model could be read"),
        (with_another_processor_file, "No model could be read"),
        (without_heads, "No model could be read"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(broken, said, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["tiny"], folder)
    broken(folder)
    with pytest.raises(FlowpruneError, match=said) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "The device 'gpu' is not here"),
        ({"device": "cuda:99"}, "The device 'cuda:99' is not here"),
        ({"device_map": "spread"}, "The device 'spread' is not here.*set device_map to auto"),
        ({"attention": "fast"}, "The attention 'fast' is none.*give eager, sdpa"),
        ({"dtype": "floaty"}, "The dtype 'floaty' is none.*give auto, float32"),
        ({"adapter": "/no/where"}, "needs peft: pip install peft|No adapter could be read"),
        (
            {"quantization": "bnb-4bit"},
            "needs bitsandbytes: pip install bitsandbytes|No model could be read",
        ),
    ],
)
def test_what_is_not_here_is_one_sentence(options, said):
    with pytest.raises(FlowpruneError, match=said):
        load_model("tiny", **options)


def test_weights_that_the_model_has_no_use_for_are_no_fault(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED["tiny"], folder)
    change(folder, lambda weights: weights | {"extra": torch.ones(2)})
    load_model(folder)


def test_layers_are_spread_as_accelerate_does():
    model, _ = load_model("tiny", device_map="auto")
    assert {weight.device.type for weight in model.parameters()} <= {"cpu", "cuda"}


@pytest.fixture
def wrapped(tmp_path):
    """The shipped model with an adapter, which the folder holds."""
    peft = pytest.importorskip("peft")
    model, _ = load_model("tiny")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora)
    wrapped.save_pretrained(tmp_path)
    return wrapped


OF_PEFT = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@OF_PEFT
def test_an_adapter_is_part_of_the_model(wrapped, tmp_path):
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = wrapped(input_ids=ids).logits
        found = load_model("tiny", adapter=tmp_path)[0](input_ids=ids).logits
        plain = load_model("tiny")[0](input_ids=ids).logits
    assert torch.equal(found, expected) and not torch.allclose(found, plain)


@OF_PEFT
def test_an_adapted_model_is_pruned_alike_wrapped_or_loaded(wrapped, tmp_path):
    loaded, processor = load_model("tiny", adapter=tmp_path)
    asked = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=Image.effect_noise((112, 112), 60).convert("RGB"), return_tensors="pt")
    config = PruningConfig(
        method={"name": "vflowopt"}, schedule=[PruningStep(layer=0, keep_ratio=0.25)], positions="original"
    )
    answers = []
    for model in (loaded, wrapped):
        with prune(model, config) as pruner:
            answers.append(model.generate(**inputs, max_new_tokens=4, do_sample=False))
        assert pruner.report[0].retention == 0.25
    assert torch.equal(*answers)


@OF_PEFT
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: {f"x.{name}": weight for name, weight in weights.items()}, "is not this model's .it lacks"),
        (
            lambda weights: {name.replace("layers.0.", "layers.40."): weight for name, weight in weights.items()},
            "lacks",
        ),
        (
            lambda weights: weights | {"base_model.model.a.q_proj.lora_A.weight": torch.ones(4, 2)},
            "the model has no a.q_proj.lora_A",
        ),
        (lambda weights: {name: weight[:, :3].contiguous() for name, weight in weights.items()}, "No adapter could be"),
    ],
)
def test_an_adapter_of_another_model_is_refused(change, said, wrapped, tmp_path):
    save_file(change(load_file(tmp_path / ADAPTER)), tmp_path / ADAPTER, {"format": "pt"})
    with pytest.raises(FlowpruneError, match=said):
        load_model("tiny", adapter=tmp_path)


@OF_PEFT
def test_a_broken_adapter_is_one_sentence(wrapped, tmp_path):
    (tmp_path / ADAPTER).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FlowpruneError, match="is a Git LFS pointer"):
        load_model("tiny", adapter=tmp_path)
    (tmp_path / ADAPTER).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FlowpruneError, match=r"adapter_model\.bin is pickled"):
        load_model("tiny", adapter=tmp_path)
