"""The main job on a checkpoint of another family, with the family's own processor and photographs of several sizes."""

import json
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

from multimodal import PruningConfig
from multimodal.testing import tiny_models
from multimodal.testing.tiny_models.family import IMAGE_TOKEN, VIDEO_TOKEN, VISION_END, VISION_START

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
    "{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
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
    videos = Qwen2VLVideoProcessor(**PATCHES)
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
            rows.append(json.dumps({"image": name, "question": "picture"}))
    (folder / "questions.jsonl").write_text("\n".join(rows))
    return folder


def test_the_main_job_on_images_of_any_size(flowprune, checkpoint: Path, photographs: Path, tmp_path: Path) -> None:
    code, printed = flowprune(
        f"model.path={checkpoint}",
        "data=folder",
        f"data.path={photographs}",
        "data.calibration=4",
        "data.heldout=2",
        "search.trials=3",
        "search.startup=2",
        "search.steps=2",
        "budget.retention=0.4",
        "maps.samples=1",
        "benchmark.repeats=1",
        "stages=[calibrate,search,validate,export,maps,benchmark]",
    )
    assert code == 0, printed
    config = PruningConfig.from_pretrained(tmp_path / "run")
    assert config.positions == "original" and config.schedule[1].layer >= 2  # rotary axes, deepstack
    assert config.budget is not None and config.budget.met <= 0.4
    assert (tmp_path / "run/maps/00.png").exists() and (tmp_path / "run/benchmark.json").exists()
