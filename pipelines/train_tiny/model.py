"""The untrained model and its processor: what is learnt and from which scenes is none of its business."""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
)

from pipelines.data.describing import BUSY, COLUMNS, PLAIN, ROWS, SHADES
from pipelines.data.scenes import COLOURS, DIGITS, GREYS, LETTERS, SHAPES, SIZE

PAD, UNKNOWN, END, IMAGE = SPECIALS = ("<pad>", "<unk>", "</s>", "<image>")
SENTENCES = (
    "user assistant : ? . what colour is the shape shapes digit digits on and are same how many there where yes no"
)
SEEN = (*COLOURS, *GREYS, *SHAPES, *DIGITS, *LETTERS, *SHADES, *PLAIN, *BUSY)
WORDS = (*SENTENCES.split(), *SEEN, *ROWS, *COLUMNS)
VOCABULARY = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ 'USER: ' if message['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_model(options: DictConfig, seed: int) -> LlavaForConditionalGeneration:
    """A randomly initialised LLaVA: CLIP tower with CLS, two-layer projector, Qwen2 decoder with tied embeddings."""
    return build_llava(CLIPVisionConfig(image_size=SIZE, **options.vision), -2, options, seed)


def build_llava(
    vision: PretrainedConfig, feature_layer: int | list[int], options: DictConfig, seed: int
) -> LlavaForConditionalGeneration:
    """A randomly initialised LLaVA whose projector reads ``feature_layer`` of the tower that ``vision`` describes."""
    torch.manual_seed(seed)
    text = Qwen2Config(
        vocab_size=len(VOCABULARY),
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=None,
        eos_token_id=VOCABULARY[END],
        tie_word_embeddings=True,
        **options.text,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=feature_layer,
        image_token_index=VOCABULARY[IMAGE],
        image_seq_length=(SIZE // vision.patch_size) ** 2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=options.attention)
    _initialise_decoder(model.model.language_model, options.decoder_std, options.embedding_std)
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=8, eos_token_id=VOCABULARY[END], pad_token_id=VOCABULARY[PAD]
    )
    return model


def _initialise_decoder(decoder: Qwen2Model, std: float, embedding_std: float) -> None:
    """Larger weights than transformers' .02, with which a decoder this narrow hardly learns to look words up."""
    for parameter in decoder.layers.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=std)
    nn.init.normal_(decoder.embed_tokens.weight, std=embedding_std)


def start_from(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Copy the weights of an earlier export into ``model``; embeddings of words that both know go word by word."""
    earlier = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    known = PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    weights = earlier.state_dict()
    embedding = model.get_input_embeddings().weight.detach().clone()
    for word in VOCABULARY.keys() & known.keys():
        embedding[VOCABULARY[word]] = earlier.get_input_embeddings().weight.detach()[known[word]]
    same = {name: weights[name] for name, own in model.state_dict().items() if own.shape == weights[name].shape}
    model.load_state_dict(same, strict=False)
    model.get_input_embeddings().weight.data.copy_(embedding)


def build_processor(
    options: DictConfig, image_mean: Sequence[float] = (0.5,) * 3, image_std: Sequence[float] = (0.5,) * 3
) -> LlavaProcessor:
    """Word-level tokenizer (lower case, unknown words become ``<unk>``) and an image processor that never crops."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=options.text.max_position_embeddings,
    )
    image_processor = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=options.vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
    )
