"""The main job on a checkpoint of another family, with the family's own processor and photographs of several sizes."""

import dataclasses
import json
import shutil
from pathlib import Path

import matplotlib.cbook
import pytest
from checkpoints import qwen3_vl
from PIL import Image

import pipelines.model
from multimodal import FlowpruneError, PruningConfig
from pipelines.data import Sample
from pipelines.model import open_model
from pipelines.prompts import build_inputs
from pipelines.settings import ModelSettings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_vl")
    qwen3_vl(folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    source = Path(matplotlib.cbook.__file__).parent / "mpl-data/sample_data"
    [photograph, *_] = sorted(source.glob("*.jpg"))
    rows = []
    with Image.open(photograph) as image:
        for number in range(6):
            name = f"{number}.png"
            image.convert("RGB").resize((60 + 8 * number, 50 - 4 * number)).save(folder / name)
            rows.append({"image": name, "question": "picture"})
        frames = [image.convert("RGB").resize((40, 40 + 4 * number)).crop((0, 0, 40, 40)) for number in range(6)]
        frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=250)
    rows += [{"images": ["0.png", "1.png"], "question": "$picture$ <image> or <image>?"}]
    rows += [{"video": "moving.gif", "question": "picture"}] * 3
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


def test_the_main_job_on_images_of_any_size(flowprune, checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    code, printed = flowprune(
        f"model.path={checkpoint}",
        "data=folder",
        f"data.path={photographs}",
        "data.calibration=5",
        "data.heldout=5",
        "data.suffix=picture",
        "search.trials=3",
        "search.startup=2",
        "search.steps=2",
        "budget.retention=0.4",
        "maps.samples=3",
        "benchmark.repeats=1",
        "benchmark.batches=[1]",
        "stages=[calibrate,search,validate,export,maps,benchmark]",
    )
    assert code == 0, printed
    config = PruningConfig.from_pretrained(tmp_path / "run")
    assert config.positions == "original" and config.schedule[1].layer >= 2  # rotary axes, deepstack
    assert config.budget is not None and config.budget.met <= 0.4
    assert len(list((tmp_path / "run/maps").glob("*.png"))) == 3 and (tmp_path / "run/benchmark.json").exists()


def settings_of(checkpoint: Path) -> ModelSettings:
    return ModelSettings(
        name="small",
        path=str(checkpoint),
        revision=None,
        dtype="auto",
        device="cpu",
        device_map=None,
        quantization=None,
        adapter=None,
        attention="sdpa",
        weights="pretrained",
        trust_remote_code=False,
        architecture=None,
    )


def test_what_changes_features_changes_the_key(checkpoint: Path, tmp_path: Path) -> None:
    def key() -> tuple[str, str]:
        pipelines.model._opened.clear()
        opened = open_model(settings_of(tmp_path / "model"))
        before = opened.identity, opened.processing
        build_inputs(opened, [Sample.asking(Image.new("RGB", (16, 16)), "picture", where="here")])
        assert (opened.identity, opened.processing) == before  # a tokenizer remembers how it was called
        return before

    def edit(name: str, old: str, new: str) -> None:
        text = (tmp_path / "model" / name).read_text()
        assert old in text
        (tmp_path / "model" / name).write_text(text.replace(old, new))

    shutil.copytree(checkpoint, tmp_path / "model")
    keys = [key()]
    assert key() == keys[0]
    edit("processor_config.json", "2048", "1024")
    keys.append(key())
    edit("chat_template.jinja", "<|vision_end|>", "<|vision_end|> ")
    keys.append(key())
    edit("tokenizer.json", "picture", "picturE")
    keys.append(key())
    assert len(set(keys)) == len({processing for _, processing in keys}) == 4
    for name in ("pytorch_model.bin", "adapter_config.json", "model.safetensors.index.json"):
        opened = pipelines.model._opened[settings_of(tmp_path / "model").model_dump_json()]
        before = opened.identity
        (tmp_path / "model" / name).write_text("{}")
        assert opened.identity != before, name
    (tmp_path / "adapter").mkdir()
    tuned = dataclasses.replace(opened, adapter=str(tmp_path / "adapter"))
    before = tuned.identity
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"1")
    assert len({opened.identity, before, tuned.identity}) == 3


def test_a_picture_that_the_processor_refuses_is_named(checkpoint: Path) -> None:
    fine, thin = (Sample.asking(Image.new("RGB", size), "picture", where=f"{size}") for size in ((30, 30), (300, 1)))
    with pytest.raises(FlowpruneError, match=r"^\(300, 1\): the model's processor refuses it \(.*aspect ratio"):
        build_inputs(open_model(settings_of(checkpoint)), [fine, thin])
