"""Published checkpoints by shape: visual tokens and costs against numbers by hand.

No model is built. Configs are typed from the checkpoints' ``config.json``; what is left out is transformers' default,
which is theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from multimodal import costs
from multimodal.families import geometry_of
from multimodal.plan import kept_counts, make_plan
from multimodal.testing.oracles import config

TEXT_TOKENS = 40
PRUNED = config([(0, 0.3), (9, 0.5)])

LLAMA_7B = {"model_type": "llama"}
MISTRAL_7B = {"model_type": "mistral", "sliding_window": None}  # version 0.2
LLAMA_3_8B = {"model_type": "llama", "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128259}
QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_7B_TEXT = QWEN_7B | {"model_type": "qwen2"}
CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
SIGLIP_MODEL = {"model_type": "siglip_vision_model"}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


@dataclass(frozen=True)
class Published:
    """One checkpoint and one prompt.

    Args:
        architecture: prefix of its transformers classes.
        settings: of its config.
        inputs: of the prompt: what ``get_image_features``, or if not that ``get_video_features``, is given.
        tokens: visual tokens of each image or video.
        kept: of one of each kind, after each step.
        retention, kv_bytes, flops: of the pruned prompt, in bfloat16.
        unpruned_kv_bytes: of the prompt as it is.
    """

    architecture: str
    settings: dict[str, Any]
    inputs: dict[str, Any]
    tokens: Sequence[int]
    kept: Sequence[tuple[int, int]]
    retention: float
    kv_bytes: int
    flops: int
    unpruned_kv_bytes: int


def pixels(*shape: int) -> Tensor:
    """One grey image of a shape, in no memory."""
    return torch.ones(1).expand(shape)


LLAVA = Published(
    "Llava",
    {"vision_config": CLIP_L_336, "text_config": LLAMA_7B},
    {"pixel_values": pixels(1, 3, 336, 336)},
    tokens=[24 * 24],
    kept=[(173, 87)],
    retention=0.193034,
    kv_bytes=79_265_792,
    flops=1_964_566_052_864,
    unpruned_kv_bytes=322_961_408,
)
NEXT_VIDEO = Published(
    "LlavaNextVideo",
    {"vision_config": CLIP_L_336, "text_config": LLAMA_7B, "image_grid_pinpoints": PINPOINTS},
    {"image_sizes": torch.tensor([[672, 672]])},
    tokens=[24 * 24 + 48 * (48 + 1)],
    kept=[(878, 439)],
    retention=0.1921,
    kv_bytes=315_867_136,
    flops=7_908_544_438_272,
    unpruned_kv_bytes=1_556_086_784,
)
ONEVISION = Published(
    "LlavaOnevision",
    {"vision_config": SIGLIP_SO400M | SIGLIP_MODEL | {"num_hidden_layers": 26}, "text_config": QWEN_7B_TEXT},
    {"image_sizes": torch.tensor([[384, 384], [768, 768], [1536, 1536]])},
    # the base view; a tile, 2 × 2 tiles, 4 × 4 tiles shrunk to 9 tiles' worth, each with a newline a row
    tokens=[729 + 27 * 28, 729 + 54 * 55, 729 + 81 * 82],
    kept=[(446, 223), (1110, 555), (2211, 1106)],
    retention=0.198268,
    kv_bytes=145_037_312,
    flops=34_447_312_370_688,
    unpruned_kv_bytes=722_247_680,
)
QWEN_2 = Published(
    "Qwen2VL",
    {"vision_config": {"hidden_size": 3584}, "text_config": QWEN_7B | {"rope_parameters": MROPE}},
    {"image_grid_thw": torch.tensor([[1, 1008 // 14, 1008 // 14]])},
    tokens=[36 * 36],
    kept=[(389, 195)],
    retention=0.198578,
    kv_bytes=17_051_648,
    flops=3_900_076_314_624,
    unpruned_kv_bytes=76_611_584,
)
QWEN_2_5 = replace(
    QWEN_2, architecture="Qwen2_5_VL", settings=QWEN_2.settings | {"vision_config": {"out_hidden_size": 3584}}
)
VIDEO_LLAMA = Published(
    "VideoLlama3",
    {
        "vision_config": {k: v for k, v in SIGLIP_SO400M.items() if k != "image_size"},
        "text_config": QWEN_7B_TEXT,
    },
    {"image_grid_thw": torch.tensor([[1, 32, 32]]), "image_merge_sizes": torch.tensor([1])},
    tokens=[32 * 32],
    kept=[(307, 154)],
    retention=0.198417,
    kv_bytes=13_944_832,
    flops=3_186_514_193_408,
    unpruned_kv_bytes=61_014_016,
)
SMOLVLM = Published(
    "SmolVLM",
    {
        "vision_config": SIGLIP_SO400M,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "head_dim": 64,
        },
        "scale_factor": 3,
    },
    {"pixel_values": pixels(1, 17, 3, 384, 384)},  # 4 × 4 tiles and the whole image
    tokens=[9 * 9] * 17,
    kept=[(24, 12)] * 17,
    retention=0.203704,
    kv_bytes=63_012_864,
    flops=1_043_459_407_872,
    unpruned_kv_bytes=278_593_536,
)

CHECKPOINTS = {
    "llava-hf/llava-1.5-7b-hf": LLAVA,
    "llava-hf/vip-llava-7b-hf": replace(LLAVA, architecture="VipLlava"),
    "llava-hf/llava-v1.6-mistral-7b-hf": Published(
        "LlavaNext",
        {"vision_config": CLIP_L_336, "text_config": MISTRAL_7B, "image_grid_pinpoints": PINPOINTS},
        {"image_sizes": torch.tensor([[672, 672], [480, 640], [300, 1000]])},
        # 2 × 2 tiles with nothing, then with 12 rows unpadded; 1 × 3 tiles with 2 rows unpadded; a newline a row
        tokens=[576 + 48 * 49, 576 + 36 * 49, 576 + 22 * 73],
        kept=[(878, 439), (702, 351), (655, 328)],
        retention=0.192236,
        kv_bytes=192_958_464,
        flops=21_183_552_135_168,
        unpruned_kv_bytes=981_729_280,
    ),
    "llava-hf/LLaVA-NeXT-Video-7B-hf": NEXT_VIDEO,
    "llava-hf/LLaVA-NeXT-Video-7B-hf, 8 frames": replace(
        NEXT_VIDEO,
        inputs={"pixel_values_videos": pixels(1, 8, 3, 336, 336)},
        tokens=[8 * 12 * 12],
        kept=[(346, 173)],
        retention=0.19241,
        kv_bytes=137_183_232,
        flops=3_408_507_985_920,
        unpruned_kv_bytes=624_951_296,
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": ONEVISION,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf, 32 frames": replace(
        ONEVISION,
        inputs={"pixel_values_videos": pixels(1, 32, 3, 384, 384)},
        tokens=[32 * 14 * 14 + 1],
        kept=[(1882, 941)],
        retention=0.198225,
        kv_bytes=73_598_976,
        flops=17_119_327_970_304,
        unpruned_kv_bytes=362_012_672,
    ),
    "Qwen/Qwen2-VL-7B-Instruct": QWEN_2,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN_2_5,
    "Qwen/Qwen2.5-VL-7B-Instruct, 4 frames": replace(
        QWEN_2_5,
        inputs={"video_grid_thw": torch.tensor([[2, 36, 36]])},
        tokens=[2 * 18 * 18],
        kept=[(194, 97)],
        retention=0.197806,
        kv_bytes=9_644_032,
        flops=2_200_915_985_408,
        unpruned_kv_bytes=39_452_672,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Published(
        "Qwen3VL",
        {
            "vision_config": {"out_hidden_size": 4096},
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
            },
        },
        {"image_grid_thw": torch.tensor([[1, 1024 // 16, 1024 // 16]])},
        tokens=[32 * 32],
        kept=[(307, 154)],
        retention=0.187744,
        kv_bytes=34_246_656,
        flops=3_243_510_964_224,
        unpruned_kv_bytes=156_893_184,
    ),
    "zai-org/GLM-4.1V-9B-Thinking": Published(
        "Glm4v",
        {"text_config": {"hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40}},
        {"image_grid_thw": torch.tensor([[1, 1008 // 14, 1008 // 14]])},
        tokens=[36 * 36],
        kept=[(389, 195)],
        retention=0.184144,
        kv_bytes=11_413_504,
        flops=4_574_003_003_392,
        unpruned_kv_bytes=54_722_560,
    ),
    "OpenGVLab/InternVL3-8B-hf": Published(
        "InternVL",
        {"text_config": QWEN_7B_TEXT},
        {"pixel_values": pixels(1, 3, 448, 448)},
        tokens=[16 * 16],
        kept=[(77, 39)],
        retention=0.200056,
        kv_bytes=5_230_592,
        flops=1_192_132_128_768,
        unpruned_kv_bytes=16_973_824,
    ),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": SMOLVLM,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": replace(
        SMOLVLM,
        settings={
            "vision_config": {"hidden_size": 768, "image_size": 512, "patch_size": 16, "num_attention_heads": 12},
            "text_config": {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
            },
            "scale_factor": 4,
        },
        inputs={"pixel_values": pixels(1, 17, 3, 512, 512)},
        tokens=[8 * 8] * 17,
        kept=[(19, 10)] * 17,
        retention=0.198438,
        kv_bytes=5_895_936,
        flops=56_769_994_368,
        unpruned_kv_bytes=25_989_120,
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": Published(
        "Idefics3",
        {"vision_config": SIGLIP_SO400M | {"image_size": 364}, "text_config": LLAMA_3_8B},
        {"pixel_values": pixels(1, 13, 3, 364, 364)},  # 3 × 4 tiles and the whole image
        tokens=[13 * 13] * 13,
        kept=[(51, 26)] * 13,
        retention=0.195451,
        kv_bytes=61_526_016,
        flops=6_615_633_272_832,
        unpruned_kv_bytes=293_208_064,
    ),
    "thisisiron/Ovis2-8B-hf": Published(
        "Ovis2",
        {
            "vision_config": {"image_size": 448, "hidden_stride": 2, "vocab_size": 65536},
            "text_config": QWEN_7B_TEXT,
            "hidden_size": 3584,
        },
        {"pixel_values": pixels(5, 3, 448, 448)},  # 2 × 2 tiles and the whole image
        tokens=[16 * 16] * 5,
        kept=[(77, 39)] * 5,
        retention=0.200056,
        kv_bytes=16_977_920,
        flops=3_883_076_628_480,
        unpruned_kv_bytes=75_694_080,
    ),
    "lkhl/VideoLLaMA3-7B-HF": VIDEO_LLAMA,
    "lkhl/VideoLLaMA3-7B-HF, 2 frames": replace(
        VIDEO_LLAMA,
        inputs={"video_grid_thw": torch.tensor([[2, 32, 32]]), "video_merge_sizes": torch.tensor([2])},
        tokens=[2 * 16 * 16],
        kept=[(154, 77)],
        retention=0.19873,
        kv_bytes=8_128_512,
        flops=1_854_211_580_928,
        unpruned_kv_bytes=31_653_888,
    ),
    "google/gemma-3-12b-it": Published(
        "Gemma3",
        {
            "vision_config": SIGLIP_SO400M | SIGLIP_MODEL | {"image_size": 896},
            "text_config": {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 256,
            },
        },
        {"pixel_values": pixels(1, 3, 896, 896)},
        tokens=[16 * 16],
        kept=[(77, 39)],
        retention=0.180176,
        kv_bytes=33_865_728,
        flops=1_856_135_823_360,
        unpruned_kv_bytes=116_391_936,
    ),
    "google/paligemma2-10b-pt-224": Published(
        "PaliGemma",
        {
            "vision_config": SIGLIP_SO400M | SIGLIP_MODEL | {"image_size": 224},
            "text_config": {
                "model_type": "gemma2",
                "hidden_size": 3584,
                "intermediate_size": 14336,
                "num_hidden_layers": 42,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
                "head_dim": 256,
            },
        },
        {"pixel_values": pixels(1, 3, 224, 224)},
        tokens=[16 * 16],
        kept=[(77, 39)],
        retention=0.184152,
        kv_bytes=29_982_720,
        flops=1_453_380_354_048,
        unpruned_kv_bytes=101_842_944,
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": Published(
        "Mistral3",
        {},
        {"pixel_values": pixels(1, 3, 1540, 1540), "image_sizes": torch.tensor([[1540, 1120]])},
        tokens=[1540 // 28 * (1120 // 28)],
        kept=[(660, 330)],
        retention=0.18375,
        kv_bytes=72_785_920,
        flops=19_822_080_000_000,
        unpruned_kv_bytes=367_001_600,
    ),
    "mistral-community/pixtral-12b": Published(
        "Llava",
        {
            "vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16},
            "text_config": {
                "model_type": "mistral",
                "hidden_size": 5120,
                "num_hidden_layers": 40,
                "head_dim": 128,
                "sliding_window": None,
            },
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        {"pixel_values": pixels(1, 3, 1024, 1024), "image_sizes": torch.tensor([[1024, 768]])},
        tokens=[64 * 48],
        kept=[(922, 461)],
        retention=0.18383,
        kv_bytes=99_078_144,
        flops=13_321_255_870_464,
        unpruned_kv_bytes=509_870_080,
    ),
    "CohereLabs/aya-vision-8b": Published(
        "AyaVision",
        {
            "vision_config": SIGLIP_SO400M | SIGLIP_MODEL | {"image_size": 364},
            "text_config": {
                "model_type": "cohere2",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "sliding_window": 4096,
            },
        },
        {"pixel_values": pixels(5, 3, 364, 364)},  # 2 × 2 tiles and the whole image
        tokens=[13 * 13] * 5,
        kept=[(51, 26)] * 5,
        retention=0.195451,
        kv_bytes=26_890_240,
        flops=2_875_564_400_640,
        unpruned_kv_bytes=115_998_720,
    ),
    "deepseek-community/deepseek-vl-1.3b-chat": Published(
        "DeepseekVL",
        {
            "vision_config": SIGLIP_MODEL | {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 384},
            "text_config": {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_key_value_heads": 16,
            },
        },
        {"pixel_values": pixels(1, 3, 384, 384)},
        tokens=[24 * 24],
        kept=[(173, 87)],
        retention=0.207031,
        kv_bytes=31_309_824,
        flops=395_413_880_832,
        unpruned_kv_bytes=121_110_528,
    ),
}


def config_of(checkpoint: Published) -> PretrainedConfig:
    settings: Callable[..., Any] = getattr(transformers, f"{checkpoint.architecture}Config")
    return settings(**checkpoint.settings)


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is arithmetic on a config: no model is built for it, not even without weights."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was built")

    for kind, name in (
        (PreTrainedModel, "__init__"),
        (nn.Module, "register_parameter"),
        (nn.Module, "register_buffer"),
        (AutoModel, "from_config"),
        (AutoModelForImageTextToText, "from_config"),
    ):
        monkeypatch.setattr(kind, name, refuse)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_tokens_and_costs_are_those_by_hand(checkpoint: Published) -> None:
    geometry = geometry_of(config_of(checkpoint))
    is_video = any("video" in key for key in checkpoint.inputs)
    layouts = (geometry.video_layouts if is_video else geometry.layouts)(checkpoint.inputs)
    assert [layout.visual_tokens for layout in layouts] == list(checkpoint.tokens)
    views = [torch.zeros(patches, 1) for layout in layouts for patches in layout.views]
    assert [len(packed) for packed in geometry.pack(views, layouts)] == list(checkpoint.tokens)
    assert [tuple(kept_counts(layout, PRUNED.schedule)) for layout in layouts] == list(checkpoint.kept)

    text = geometry.text_config
    pruned = costs.estimate(text, layouts, TEXT_TOKENS, PRUNED)
    assert pruned.retention == pytest.approx(checkpoint.retention, abs=1e-6)
    assert (pruned.kv_bytes, pruned.prefill_flops) == (checkpoint.kv_bytes, checkpoint.flops)
    assert costs.estimate(text, layouts, TEXT_TOKENS).kv_bytes == checkpoint.unpruned_kv_bytes


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_batch_is_planned_from_the_config_alone(checkpoint: Published) -> None:
    """One prompt with all images of the checkpoint, one with its first, one of text: lengths of every layer."""
    geometry = geometry_of(config_of(checkpoint))
    is_video = any("video" in key for key in checkpoint.inputs)
    layouts = (geometry.video_layouts if is_video else geometry.layouts)(checkpoint.inputs)
    plan = make_plan([(layouts, 40), (layouts[:1], 12), ([], 7)], PRUNED.schedule, geometry.text_layers)
    assert plan.starts == (0, 9)
    (first, second), *_ = zip(*checkpoint.kept, strict=True), None
    assert plan.lengths(0) == plan.lengths(8) == (40 + sum(first), 12 + first[0], 7)
    assert plan.lengths(9) == plan.lengths(geometry.text_layers - 1) == (40 + sum(second), 12 + second[0], 7)
    assert plan.rows[0].retention == pytest.approx(checkpoint.retention, abs=1e-6)
    assert plan.rows[2].retention == 1.0 and plan.rows[2].visual_tokens == 0


def test_building_a_model_would_fail() -> None:
    """What the other tests here rely on."""
    with pytest.raises(AssertionError, match="a model was built"):
        AutoModelForImageTextToText.from_config(config_of(LLAVA))
    with pytest.raises(AssertionError, match="a model was built"):
        transformers.LlavaForConditionalGeneration(config_of(LLAVA))
    with pytest.raises(AssertionError, match="a model was built"):
        nn.Linear(1, 1)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_everything_else_is_known_without_a_model(checkpoint: Published) -> None:
    geometry = geometry_of(config_of(checkpoint))
    pixels = geometry.random_image()
    assert sum(layout.visual_tokens for layout in geometry.layouts(pixels)) > 0
    ids = torch.tensor([[9, geometry.image_token_id]])
    assert all(each.shape == ids.shape for each in geometry.token_inputs(ids).values())
    layers = list(geometry.whole_view_layers)
    assert layers == sorted(layers) and geometry.vision_layer(-1) == layers[-1] < geometry.vision_layers
    assert geometry.text_layers == geometry.text_config.num_hidden_layers
    assert "original" in geometry.positions and geometry.deepstack_layers < geometry.text_layers
