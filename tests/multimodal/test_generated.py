"""Every way to generate, over every family.

Keeping everything, generate() writes what it writes with the stock model; pruned, the masked oracle agrees with every
logit of what was written.
"""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import (
    EXACT,
    KEEPS_ALL,
    PRUNES,
    ROTATED,
    assists,
    families,
    generated,
    recomputes,
    rotated,
)
from multimodal.testing.oracles import run_hidden, tiny
from multimodal.testing.tiny_models import batch, extended, family, sample
from multimodal.testing.tiny_models.family import FIRST_WORD


def prompts(model: PreTrainedModel) -> list[dict]:
    return [sample(model, images=1, text=4, seed=1), sample(model, images=0, text=9, seed=3)]


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "without a cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2, "eos_token_id": FIRST_WORD - 1},  # an end that cannot come
    "beams": {"num_beams": 2, "num_return_sequences": 2, "output_scores": True, "length_penalty": 0.0},
    "sampled beams": {"num_beams": 2, "do_sample": True, "output_scores": True, "length_penalty": 0.0},
}


def answered(model: PreTrainedModel, inputs: dict, options: dict) -> Any:
    torch.manual_seed(7)
    return generated(model, inputs, max_new_tokens=3, **options)


@pytest.mark.parametrize(("name", "way"), rotated(WAYS))
def test_generate_writes_what_the_model_would(name: str, way: str) -> None:
    """Keeping everything, what the stock model writes; pruned, the masked model's logits of what was written."""
    model, options = tiny(name), WAYS[way]
    if way == "without a cache" and not (recomputes(model) and family(model).sees_uncached):
        pytest.skip("the stock model writes something else without a cache")
    if way == "prompt lookup" and not assists(model):
        pytest.skip("the stock model writes something else with guesses")
    inputs = batch(prompts(model)[:1] if way == "prompt lookup" else prompts(model))
    stock = answered(model, inputs, options)
    with prune(model, KEEPS_ALL):
        same = answered(model, inputs, options)
    assert torch.equal(same.sequences, stock.sequences)
    for ours, theirs in zip(same.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    with prune(model, PRUNES) as pruner:
        output = answered(model, inputs, options)
    rows, length = inputs["input_ids"].shape
    copies, beams = len(output.sequences) // rows, options.get("num_beams", 1)
    kept = [entry.kept for entry in pruner.report][:: max(copies, beams)]
    for copy in range(copies):
        new = output.sequences[copy::copies, length:]
        expected = run_hidden(model, extended(model, inputs, new[:, :-1]), kept)[0][:, length - 1 :]
        if beams == 1:
            torch.testing.assert_close(torch.stack(output.logits, 1)[copy::copies], expected, **ROTATED)
        else:
            scores = expected.log_softmax(-1).gather(-1, new[..., None]).sum((1, 2))
            torch.testing.assert_close(output.sequences_scores[copy::copies], scores, **ROTATED)


@families
def test_generate_reads_embeddings(name: str) -> None:
    """Embeddings of the token ids beside the pixels, with and without the token ids."""
    model = tiny(name)
    inputs = prompts(model)[0]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    stock = generated(model, inputs, max_new_tokens=2).logits
    with prune(model, PRUNES):
        expected = generated(model, inputs, max_new_tokens=2).logits
    ran = 0
    for left_out in ((), ("input_ids",)):
        given = {key: value for key, value in inputs.items() if key not in left_out} | {"inputs_embeds": embeds}
        try:
            torch.testing.assert_close(generated(model, given, max_new_tokens=2).logits, stock, **EXACT)
        except Exception:
            continue  # the stock model reads none, or gives its tokens other positions then
        with prune(model, PRUNES):
            logits = generated(model, given, max_new_tokens=2).logits
        torch.testing.assert_close(logits, expected, **EXACT)
        ran += 1
    if not ran:
        pytest.skip("the stock model generates from no embeddings")
