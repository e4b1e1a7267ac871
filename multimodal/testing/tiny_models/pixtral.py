"""LLaVA with a Pixtral tower and Mistral 3: images in their own sizes, a text token at the end of each row."""

import inspect
from functools import partial

import torch
from torch import Generator, Tensor, nn
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PixtralVisionModel,
    PreTrainedModel,
)

from multimodal.testing.tiny_models.family import IMAGE_TOKEN, SEPARATOR, TEXT, VISION, Media, TinyFamily, Token, pooled

PATCH = VISION["patch_size"]
SIZES = [(24, 32), (16, 16), (32, 24), (40, 16)]  # pixels


def text() -> MistralConfig:
    return MistralConfig(**TEXT, sliding_window=None)


def build_llava() -> PreTrainedModel:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=PixtralVisionConfig(**VISION | {"image_size": 64}),
            text_config=text(),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )


def build_mistral3() -> PreTrainedModel:
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=PixtralVisionConfig(**VISION | {"image_size": 64}),
            text_config=text(),
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=False,
        )
    )


def image(merge: int, model: PreTrainedModel, number: int, generator: Generator) -> Media:
    height, width = SIZES[number % len(SIZES)]
    pixels = {
        "pixel_values": torch.randn(1, 3, height, width, generator=generator),
        "image_sizes": torch.tensor([[height, width]]),
    }
    rows, columns = height // PATCH // merge, width // PATCH // merge
    return Media(pixels, [token for _ in range(rows) for token in (*[IMAGE_TOKEN] * columns, SEPARATOR)])


def tokens(merge: int, model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    return [pooled(0, height // PATCH, width // PATCH, merge) for height, width in inputs["image_sizes"].tolist()]


def pictures(model: PreTrainedModel, inputs: dict) -> list[list[Tensor]]:
    sizes = inputs["image_sizes"].tolist()
    return [[image[:, :height, :width]] for image, (height, width) in zip(inputs["pixel_values"], sizes, strict=True)]


def vision_attention(model: PreTrainedModel) -> nn.Module:
    return model.model.vision_tower.transformer.layers[3].attention


def family(build: object, merge: int) -> TinyFamily:
    # transformers 5.0 lets flash attention read each row of patches as a sequence of its own
    packs_views = "cu_seq_lens_q" in inspect.getsource(PixtralVisionModel.forward)
    return TinyFamily(
        build, partial(image, merge), partial(tokens, merge), pictures, vision_attention, flash_tower=packs_views
    )


FAMILIES = {"llava_pixtral": family(build_llava, merge=1), "mistral3": family(build_mistral3, merge=2)}
