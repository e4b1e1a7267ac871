"""Tiny random models of every family, built from transformers' configs, and inputs for them. No network, no GPU.

One file a family; every module of this package with ``FAMILIES`` is imported, so a new file is a new family.
"""

import importlib.util
import inspect
import pkgutil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, LlamaModel, LlavaModel, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_flash_attention_utils import _is_packed_sequence

from multimodal.testing.tiny_models.family import FIRST_WORD, IMAGE_TOKEN, LAYERS, VIDEO_TOKEN, WORDS, TinyFamily

# what this version of transformers calls a cache, as an argument and in outputs
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
# whether generate() encodes images before it copies and chunks prompts; if not, it mixes up the images of copied
# prompts that have several, and reads no image in chunks
ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(LlavaModel.forward).parameters
# whether generate() reads the new turn of a conversation alone; if not, it wants the whole conversation again
READS_NEW_TURNS = "cache_position" not in inspect.signature(LlamaModel.forward).parameters
# whether the hidden states that a vision tower is asked for are kept by thread
CAPTURES_BY_THREAD = importlib.util.find_spec("transformers.utils.output_capturing") is not None
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")

FAMILIES: dict[str, TinyFamily] = {}
for _module in pkgutil.iter_modules(__path__):
    FAMILIES |= getattr(importlib.import_module(f"{__name__}.{_module.name}"), "FAMILIES", {})

__all__ = [
    "CACHE",
    "CAPTURES_BY_THREAD",
    "ENCODES_FIRST",
    "FAMILIES",
    "IMAGE_TOKEN",
    "LAYERS",
    "READS_NEW_TURNS",
    "VIDEO_TOKEN",
    "WORDS",
]


def build(name: str, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = FAMILIES[name].build().eval()
    model.config._name_or_path = name
    if attention == "fake_flash":  # transformers would look for a kernel
        for module in (model if FAMILIES[name].flash_tower else model.model.language_model).modules():
            if isinstance(module, PreTrainedModel):
                module.config._attn_implementation = attention
    else:
        eager_text = attention == "sdpa" and not FAMILIES[name].sdpa
        model.set_attn_implementation({"": attention, "text_config": "eager"} if eager_text else attention)
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = list(range(FIRST_WORD))  # no model writes placeholders
    return model


def family(model: PreTrainedModel) -> TinyFamily:
    return FAMILIES[model.config._name_or_path]


def sample(
    model: PreTrainedModel, images: int = 1, text: int = 9, seed: int = 0, size: int = 0, videos: int = 0
) -> dict:
    """Inputs of one sample with text around its images, then its videos; ``size`` picks among the image sizes."""
    own, generator = family(model), torch.Generator().manual_seed(seed)

    def words() -> list[int]:
        return torch.randint(FIRST_WORD, WORDS, (text,), generator=generator).tolist()

    media = [own.image(model, size + number, generator) for number in range(images)]
    if videos:
        assert own.video is not None
        media += [own.video(model, number, generator) for number in range(videos)]
    ids = torch.tensor([words() + [token for each in media for token in (*each.ids, *words())]])
    return media_of([each.pixels for each in media]) | token_inputs(model, ids)


def token_inputs(model: PreTrainedModel, ids: Tensor) -> dict:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | family(model).token_inputs(ids)


def extended(model: PreTrainedModel, inputs: dict, new: Tensor) -> dict:
    """The inputs with new words ``[B, n]`` appended."""
    types = torch.full_like(new, family(model).following_type)
    values = {"input_ids": new, "attention_mask": torch.ones_like(new)}
    grown = {key: torch.cat([inputs[key], values.get(key, types)], 1) for key in BY_TOKEN if key in inputs}
    return inputs | grown


def media_of(parts: list[dict]) -> dict:
    """Several samples' pixels as one batch; images that are smaller or have fewer tiles are filled up with zeros."""
    inputs = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        tensors = [part[key] for part in parts if key in part]
        most = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        missing = [[size - own for own, size in zip(t.shape[1:], most, strict=True)] for t in tensors]
        tensors = [
            pad(t, [n for size in own[::-1] for n in (0, size)]) for t, own in zip(tensors, missing, strict=True)
        ]
        inputs[key] = torch.cat(tensors)
    return inputs


def batch(samples: list[dict]) -> dict:
    """Samples side by side, padded on the left."""
    longest = max(s["input_ids"].shape[1] for s in samples)
    by_token = {
        key: torch.cat([pad(s[key], (longest - s[key].shape[1], 0)) for s in samples])
        for key in BY_TOKEN
        if key in samples[0]
    }
    return by_token | media_of([{key: s[key] for key in s if key not in BY_TOKEN} for s in samples])


def is_visual(inputs: dict) -> Tensor:
    return (inputs["input_ids"] == IMAGE_TOKEN) | (inputs["input_ids"] == VIDEO_TOKEN)


def fake_flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """What flash attention does, slowly: 2-D masks only; without one, positions that jump are packed sequences."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(query.shape[0], queries, keys, dtype=torch.bool)
    if kwargs.get("is_causal", module.is_causal):
        seen &= torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    if attention_mask is not None:
        assert attention_mask.shape == (query.shape[0], keys)
        seen &= attention_mask.bool()[:, None]
    elif (ends := kwargs.get("cu_seq_lens_q")) is not None:
        pack = torch.bucketize(torch.arange(keys), ends[1:], right=True)
        seen &= pack[:, None] == pack
    elif _is_packed_sequence(kwargs.get("position_ids"), query.shape[0]):
        pack = (kwargs["position_ids"].diff(prepend=kwargs["position_ids"][:, :1] - 1) != 1).cumsum(1)
        seen &= pack[:, :, None] == pack[:, None]
    seen = seen.unsqueeze(1) | ~seen.any(-1)[:, None, :, None]
    return sdpa_attention_forward(module, query, key, value, seen, scaling=kwargs.get("scaling"), is_causal=False)


AttentionInterface.register("fake_flash", fake_flash)
AttentionMaskInterface.register("fake_flash", ALL_MASK_ATTENTION_FUNCTIONS["flash_attention_2"])
