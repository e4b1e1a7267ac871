"""What is handed to an engine, read by the stock language model at the places given, answers as a pruned model does."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from multimodal import FlowpruneError, prune
from multimodal.families import modules_of
from multimodal.serving.handover import hand_over
from multimodal.testing.contracts import mixed_samples
from multimodal.testing.oracles import config, tiny
from multimodal.testing.tiny_models import batch, is_visual, sample

SERVED = (
    "llava_clip",
    "llava_siglip",
    "internvl",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "vipllava",
    "qwen2_vl",
    "qwen2_5_vl",
)
REFUSED = {
    "llava_pixtral": "broken by other tokens",
    "qwen3_vl": "adds visual features again",
    "gemma3": "both ways",
}


def engine_reads(model: PreTrainedModel, inputs: dict[str, Any], images: list) -> Tensor:
    """The last token's logits of one prompt, as an engine that is handed ready embeddings computes them."""
    modules = modules_of(model)
    ids, visual = inputs["input_ids"][0], is_visual(inputs)[0]
    words, axes = model.get_input_embeddings(), modules.geometry.rotary_axes
    embeds, positions, at, left = [], [], 0, list(images)
    following = 0
    while at < len(ids):
        if not visual[at]:
            embeds.append(words(ids[at])[None])
            positions.append(torch.full((axes, 1), following))
            following, at = following + 1, at + 1
            continue
        image = left.pop(0)
        embeds.append(image.features)
        positions.append(image.positions + following)
        following += image.span
        at += image.visual_tokens
    assert not left
    places = torch.cat(positions, 1)
    states = modules.text_model(
        inputs_embeds=torch.cat(embeds)[None],
        position_ids=places if axes == 1 else places[:, None],
        attention_mask=torch.ones(1, places.shape[1], dtype=torch.long),
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(states[:, -1])


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("positions", ["original", "compact"])
@torch.inference_mode()
def test_an_engine_answers_as_the_pruned_model(name, positions):
    model = tiny(name)
    if positions not in modules_of(model).geometry.positions:
        pytest.skip("several rotary axes cannot be numbered anew")
    chosen = config([(0, 0.4)], recycling_cell=2.0, positions=positions)
    samples = [*mixed_samples(model), sample(model, images=2)]
    inputs = batch(samples)
    handed = hand_over(model, chosen, inputs).rows
    with prune(model, chosen) as pruner:
        expected = model(**inputs, use_cache=False).logits[:, -1]
        report = pruner.report
    for row, alone in enumerate(samples):
        assert sum(len(image.features) for image in handed[row]) == (len(report[row].kept[0]))
        assert sum(image.visual_tokens for image in handed[row]) == report[row].visual_tokens
        found = engine_reads(model, alone, handed[row])
        torch.testing.assert_close(found[0], expected[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_ready_embeddings_cannot_say_is_refused(name, reason):
    model = tiny(name)
    with pytest.raises(FlowpruneError, match=f"{reason}.*engine=transformers"):
        hand_over(model, config([(0, 0.4)]), sample(model))


def test_a_step_inside_the_language_model_is_refused():
    model = tiny("llava_clip")
    with pytest.raises(FlowpruneError, match="serving=vllm"):
        hand_over(model, config([(0, 0.4), (2, 0.5)]), sample(model))
