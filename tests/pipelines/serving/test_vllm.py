"""A real vLLM, in an environment of its own (``make vllm``): it answers as generate() does in a prune block.

Skipped where there is none; each test starts one, which takes a minute.
"""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from endpoints import ROOT, SHORT, TINY, VFLOWOPT, served
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
)

from multimodal import PruningConfig, prune
from multimodal.families import geometry_of
from multimodal.serving.handover import hand_over
from multimodal.serving.vllm_arguments import hf_overrides, vllm_arguments
from multimodal.serving.vllm_images import vllm_image
from multimodal.serving.vllm_weights import write_readable
from pipelines.data import Sample
from pipelines.data.pictures import drawn
from pipelines.data.sample import Turn
from pipelines.data.scenes import scenes
from pipelines.model import open_model
from pipelines.prompts import build_inputs, greedy_answers
from pipelines.serving.front_end import open_front_end
from pipelines.serving.metrics import Metrics
from pipelines.serving.vllm_engine import VllmEngine, served_name
from pipelines.serving.vllm_process import VllmProcess
from pipelines.settings import ModelSettings

PYTHON = Path(os.environ.get("FLOWPRUNE_VLLM", ROOT / ".vllm/bin/python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM here: make vllm")

TEXT = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "initializer_range": 0.2,
    "max_position_embeddings": 1024,
}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
TOWER |= {"patch_size": 14, "initializer_range": 0.2}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
SIZE = {"shortest_edge": 56}


def next_model() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "multimodal/tiny")
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**TOWER, projection_dim=32),
        text_config=Qwen2Config(**TEXT),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    images = LlavaNextImageProcessor(size=SIZE, crop_size=56, image_grid_pinpoints=PINPOINTS)
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaNextForConditionalGeneration(config), processor


def onevision() -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "multimodal/tiny")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>"]})
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**TOWER),
        text_config=Qwen2Config(**TEXT),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = LlavaOnevisionImageProcessor(size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS)
    videos = LlavaOnevisionVideoProcessor(size={"height": 56, "width": 56})
    processor = LlavaOnevisionProcessor(
        images, tokenizer, videos, num_image_tokens=16, vision_feature_select_strategy="full"
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen(config: type, model: type, processor: type, tower: dict) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "multimodal/tiny")
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    start, end, image, video = tokenizer.convert_tokens_to_ids(marks)
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    chosen = config(
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 14, "initializer_range": 0.2} | tower,
        text_config=TEXT | {"rope_parameters": rotary},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    bounds = {"min_pixels": 56 * 56, "max_pixels": 224 * 224}
    parts = Qwen2VLImageProcessor(**bounds), tokenizer, Qwen2VLVideoProcessor(**bounds)
    return model(chosen), processor(*parts)


BUILT = {
    "llava_next": next_model,
    "llava_onevision": onevision,
    "qwen2_vl": lambda: qwen(
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
        {"embed_dim": 64, "hidden_size": 128, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": lambda: qwen(
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        {"hidden_size": 64, "out_hidden_size": 128, "intermediate_size": 96, "fullatt_block_indexes": [1]},
    ),
}


@pytest.mark.parametrize("family", BUILT)
@torch.inference_mode()
def test_every_family_of_the_plugin_keeps_its_positions(family, tmp_path):
    """Random weights: whatever is off by one shows at once."""
    torch.manual_seed(0)
    model, processor = BUILT[family]()
    model.config.architectures = [type(model).__name__]
    for part in (model.eval(), processor):
        part.save_pretrained(tmp_path / "written")
    write_readable(tmp_path / "written", tmp_path / "model")
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    method = {"name": "vflowopt", "query_threshold": 1.0, "entropy_weight": 0.5, "recycling_cell": 2.0}
    config = PruningConfig(
        method=method, schedule=[{"layer": 0, "keep_ratio": 0.3}], image_mean=tuple(mean), image_std=tuple(std)
    )
    prompts, expected = [], []
    image_token = model.config.image_token_id
    mark = processor.tokenizer.convert_ids_to_tokens(image_token)
    placed = f"<|vision_start|>{mark}<|vision_end|>" if "qwen" in family else mark
    for number, sample in enumerate(scenes("test", 4)):
        picture = sample.pictures[0].shown()
        pictures = [picture.resize((100, 60 + 30 * number)), picture.resize((70, 70))][: 1 + number % 2]
        text = "what " + " is ".join([placed] * len(pictures)) + " colour is the"
        inputs = processor(images=pictures, text=[text], return_tensors="pt")
        [left] = hand_over(model, config, inputs).rows
        with prune(model, config):
            output = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        expected.append(output[0, inputs["input_ids"].shape[1] :].tolist())
        ids = processor.tokenizer(text)["input_ids"]
        images = [vllm_image(each, geometry_of(model.config)) for each in left]
        length = len(ids) - len(left) + sum(len(each.features) for each in left)
        prompts.append({"ids": ids, "images": images, "length": length})
    torch.save(prompts, tmp_path / "prompts.pt")
    found = _run(tmp_path, hf_overrides(model.config), *(["video"] if family != "llava_next" else []))
    assert [length for _, length in found] == [each["length"] for each in prompts]
    assert [tokens for tokens, _ in found] == expected


QWEN_CHAT = (
    "{% for message in messages %}user {% for part in message['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }} {% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endfor %}"
    "assistant :"
)


def test_a_vllm_of_its_own_over_http(tmp_path):
    """Several images of several sizes a request, of a family whose images vLLM counts by a grid."""
    torch.manual_seed(0)
    model, processor = BUILT["qwen2_5_vl"]()
    model.config.architectures, processor.chat_template = [type(model).__name__], QWEN_CHAT
    model.eval().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    settings = TINY | {"name": "qwen", "path": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"}
    opened = open_model(ModelSettings.model_validate(settings))
    mean, std = opened.normalization
    config = PruningConfig(method=VFLOWOPT, schedule=[{"layer": 0, "keep_ratio": 0.3}], image_mean=mean, image_std=std)
    samples = []
    for number, sample in enumerate(scenes("test", 6)):
        picture = sample.pictures[0].shown()
        pictures = [drawn(picture.resize((100 + 20 * number, 90))), drawn(picture.resize((70, 120)))][: 1 + number % 2]
        samples.append(Sample((Turn("user", (*pictures, sample.question)),)))
    with prune(opened.model, config):
        expected = [greedy_answers(opened, build_inputs(opened, [sample]), SHORT)[0] for sample in samples]

    front_end = open_front_end(ModelSettings.model_validate(settings | {"revision": "main"}))  # not the one above
    assert all(weight.is_meta for weight in front_end.modules.text_layers.parameters())
    flags = ["--enforce-eager", "--max-model-len", "512", "--dtype", "float32", "--skip-mm-profiling"]
    arguments = [*vllm_arguments(opened.model.config), *flags, "--generation-config", "vllm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        process = VllmProcess(str(PYTHON), str(tmp_path / "model"), "there", arguments, tmp_path / "vllm.log")
        try:
            process.wait(600)

            def make(metrics: Metrics) -> VllmEngine:
                return VllmEngine(
                    front_end, {"third": config}, process.url, metrics, "tiny", served_name(process.url), 60
                )

            with served(make, ["third"]) as endpoint, ThreadPoolExecutor(6) as pool:
                answers = pool.map(lambda sample: endpoint.ask(sample, "third"), samples)
                found = [answer.choices[0].message.content.strip() for answer in answers]
        finally:
            process.close()
    assert found == expected


def _run(folder: Path, overrides: dict, *more: str) -> list:
    script = Path(__file__).with_name("vllm_answers.py")
    command = [PYTHON, script, folder / "model", json.dumps(overrides), folder / "prompts.pt", *more]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])
