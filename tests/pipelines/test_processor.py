"""The main job on a checkpoint of another family, with the family's own processor and photographs of several sizes."""

import dataclasses
import json
import shutil
from pathlib import Path

import matplotlib.cbook
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
)

import pipelines.model
from multimodal import FlowpruneError, PruningConfig
from multimodal.testing import tiny_models
from multimodal.testing.tiny_models.family import IMAGE_TOKEN, VIDEO_TOKEN, VISION_END, VISION_START
from pipelines.data import Sample
from pipelines.model import open_model
from pipelines.prompts import build_inputs
from pipelines.settings import ModelSettings

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
SPECIAL = {
    "<pad>": 0,
    "<bos>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<|vision_start|>": VISION_START,
    "<|vision_end|>": VISION_END,
    "<|image_pad|>": IMAGE_TOKEN,
    "<|video_pad|>": VIDEO_TOKEN,
    "picture": 9,
}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3_vl")
    words = Tokenizer(models.WordLevel(SPECIAL, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[name for name in SPECIAL if name.startswith("<|")],
    )
    images = Qwen2VLImageProcessor(min_pixels=64, max_pixels=2048, **PATCHES, **HALF)
    videos = Qwen2VLVideoProcessor(min_pixels=64, max_pixels=2048, **PATCHES)
    Qwen3VLProcessor(images, tokenizer, videos, chat_template=TEMPLATE).save_pretrained(folder)
    tiny_models.build("qwen3_vl").save_pretrained(folder)
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
