"""What ``prune()`` refuses, and that the model is untouched then."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, StaticCache

from multimodal import FlowpruneError, prune
from multimodal.testing.contracts import assert_restored, families, generated, run_pruned, snapshot
from multimodal.testing.oracles import config, text_model, tiny
from multimodal.testing.tiny_models import CACHE, ENCODES_FIRST, LAYERS, batch, is_visual, sample


def stock(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    return model(**inputs, output_hidden_states=True).logits


# refusals


def test_nested_blocks_are_refused() -> None:
    model = tiny("llava_clip")
    inputs = sample(model)
    logits = stock(model, inputs)
    before = snapshot(model)
    with prune(model, config()):
        inside = snapshot(model)
        with pytest.raises(FlowpruneError, match="leave the outer prune"), prune(model, config()):
            pass
        assert snapshot(model) == inside
    assert_restored(model, inputs, before, logits)
    with prune(model, config()):  # and again, one after the other
        pass


def static_cache(model: PreTrainedModel, inputs: dict) -> None:
    model(**inputs, **{CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=400)})


def static_generate(model: PreTrainedModel, inputs: dict) -> None:
    try:
        model.generate(**inputs, cache_implementation="static", max_new_tokens=2)
    finally:
        vars(model).pop("_cache", None)  # older versions leave it to the next call, which trips over an empty one


def ready_mask(model: PreTrainedModel, inputs: dict) -> None:
    length = inputs["input_ids"].shape[1]
    model(**inputs | {"attention_mask": torch.ones(1, 1, length, length).tril().bool()})


def chunks(model: PreTrainedModel, inputs: dict) -> None:
    model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=40)


def embeddings_only(model: PreTrainedModel, inputs: dict) -> None:
    model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))


def unseen_encoding(model: PreTrainedModel, inputs: dict) -> None:
    """Features that were encoded outside of the block: their maps were never seen."""
    vision = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    features = type(model.model).get_image_features(model.model, **vision)
    model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features})


needs_encoding_first = pytest.mark.skipif(
    not ENCODES_FIRST, reason="this transformers takes no encoded images, and reads none in chunks"
)


@pytest.mark.parametrize("name", ["llava_siglip", "llava_onevision"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (static_cache, "StaticCache .* leave cache_implementation unset"),
        (static_generate, "cache_implementation|attention mask"),
        (ready_mask, "pass the 2-D padding mask"),
        pytest.param(chunks, "in parts: .* leave prefill_chunk_size unset", marks=needs_encoding_first),
        (embeddings_only, "pass input_ids"),
        pytest.param(unseen_encoding, "encoded outside of this block", marks=needs_encoding_first),
    ],
)
def test_refused_calls(name: str, call: Any, message: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    logits = stock(model, inputs)
    before = snapshot(model)
    chosen = config(recycling_cell=3.0)
    expected = run_pruned(model, inputs, chosen)[1]
    with prune(model, chosen):
        with pytest.raises(FlowpruneError, match=message) as error:
            call(model, inputs)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
        assert torch.equal(model(**inputs).logits, expected)  # the block goes on
    assert_restored(model, inputs, before, logits)
    with pytest.raises(FlowpruneError), prune(model, chosen):
        call(model, inputs)
    assert_restored(model, inputs, before, logits)


@needs_encoding_first
@pytest.mark.parametrize("name", ["llava_siglip", "qwen2_5_vl"])
def test_images_that_were_encoded_earlier_keep_their_own_evidence(name: str) -> None:
    """Two images of one size are encoded, then read in the other order."""
    model, expected = tiny(name), []
    prompts = [sample(model, images=1, seed=seed, text=5) for seed in (1, 2)]
    with prune(model, config()) as pruner:
        for inputs in prompts:
            model(**inputs)
            expected.append([kept.tolist() for kept in pruner.report[0].kept])
        keys = [key for key in ("pixel_values", "image_sizes", "image_grid_thw") if key in prompts[0]]
        encoded = [model.model.get_image_features(**{key: own[key] for key in keys}) for own in prompts]
        for number in (0, 1, 0):
            told = {key: value for key, value in prompts[number].items() if key != "pixel_values"}
            model(**told, mm_encoder_outputs={"image": encoded[number]})
            assert [kept.tolist() for kept in pruner.report[0].kept] == expected[number]
    assert expected[0] != expected[1]


@families
def test_placeholders_that_mismatch_are_refused(name: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    logits = stock(model, inputs)
    before = snapshot(model)
    fewer = {key: value.clone() for key, value in inputs.items()}
    fewer["input_ids"][0, is_visual(inputs)[0].nonzero()[0]] = 11
    with pytest.raises(ValueError), prune(model, config()):
        model(**fewer)
    assert_restored(model, inputs, before, logits)


def test_images_that_lie_in_two_prompts_are_refused() -> None:
    """As where generate() copies the images of a prompt one by one: transformers 5.0 and 5.5."""
    model = tiny("llava_onevision")
    one, two = (sample(model, images=1, seed=1, size=size) for size in (0, 1))
    inputs = batch([one, two])
    for key in ("pixel_values", "image_sizes"):
        inputs[key] = inputs[key].flip(0)
    with prune(model, config()) as pruner:
        with pytest.raises(FlowpruneError, match="lie in two prompts"):
            model(**inputs)
        model(**one)
        if not ENCODES_FIRST:
            with pytest.raises(FlowpruneError, match=r"lie in two prompts.* copy \(num_beams"):
                generated(model, sample(model, images=2), num_beams=2)
        assert len(pruner.report) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": [(0, 0.5), (LAYERS, 0.5)]}, rf"schedule\.1\.layer is {LAYERS}.* 0 to {LAYERS - 1}"),
        ({"vision_layer": -4}, "vision_layer -4"),
        ({"image_mean": None}, "image_mean and image_std are missing"),
        (
            {"model": {"id": "x", "architecture": "Other", "layers": 5}},
            "architecture is Other, .* LlavaForConditionalGeneration",
        ),
    ],
    ids=["layer", "vision layer", "image mean", "architecture"],
)
def test_configs_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    model = tiny("llava_clip")
    before = snapshot(model)
    with pytest.raises(FlowpruneError, match=message) as error, prune(model, config(**fields)):
        pass
    assert "\n" not in str(error.value)
    assert snapshot(model) == before


def test_flex_attention_is_refused() -> None:
    model = tiny("llava_clip")
    settings = text_model(model).config
    backend = settings._attn_implementation
    settings._attn_implementation = "flex_attention"
    try:
        with pytest.raises(FlowpruneError, match="attn_implementation='sdpa'"), prune(model, config()):
            pass
    finally:
        settings._attn_implementation = backend


@pytest.mark.parametrize("name", ["llava_clip", "llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize(("cell", "ratio"), [(1.0, 0.5), (1.3, 0.05), (1.0, 1e-6), (500.0, 0.3)])
def test_cells_that_do_not_fit_are_the_nearest_that_do(name: str, cell: float, ratio: float) -> None:
    """What was tuned for one size of image prunes every other, with exact counts."""
    model = tiny(name)
    for size in range(4):
        inputs = sample(model, images=1, size=size)
        with prune(model, config([(0, ratio)], recycling_cell=cell)) as pruner:
            model(**inputs)
        recycled = [len(kept) for kept in pruner.report[0].kept]
        with prune(model, config([(0, ratio)])) as pruner:
            model(**inputs)
        assert recycled == [len(kept) for kept in pruner.report[0].kept]


def test_the_report_is_empty_before_a_prompt() -> None:
    with prune(tiny("llava_clip"), config()) as pruner:
        assert pruner.report == []
