"""Aya Vision and Command A Vision: tiles with separators between them, a language model with sliding windows."""

from functools import partial

from torch import nn
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

from multimodal.testing.tiny_models import ovis2
from multimodal.testing.tiny_models.family import IMAGE_TOKEN, LAYERS, TEXT, VISION, TinyFamily

WINDOW = 24


def build(config: type, model: type, **settings: object) -> PreTrainedModel:
    types = ["sliding_attention" if layer % 2 else "full_attention" for layer in range(LAYERS)]
    return model(
        config(
            vision_config=SiglipVisionConfig(**VISION),
            text_config=Cohere2Config(**TEXT, sliding_window=WINDOW, layer_types=types, logit_scale=1.0),
            tie_word_embeddings=False,
            **settings,
        )
    )


def vision_attention(model: PreTrainedModel) -> nn.Module:
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    return stack[3].self_attn


def family(config: type, model: type, **settings: object) -> TinyFamily:
    return TinyFamily(
        partial(build, config, model, **settings),
        ovis2.image,
        ovis2.tokens,
        ovis2.pictures,
        vision_attention,
        plain_decoder=False,
        flash=False,
        windows=True,
    )


FAMILIES = {
    "aya_vision": family(AyaVisionConfig, AyaVisionForConditionalGeneration, image_token_index=IMAGE_TOKEN),
    "cohere2_vision": family(
        Cohere2VisionConfig,
        Cohere2VisionForConditionalGeneration,
        image_token_id=IMAGE_TOKEN,
        alignment_intermediate_size=48,
    ),
}
