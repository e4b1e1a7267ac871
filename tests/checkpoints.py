"""Checkpoints of families that do not ship, with processors of their own: random weights, few words."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
)

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
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def qwen3_vl(folder: Path) -> None:
    """One that takes images of any size and videos."""
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
