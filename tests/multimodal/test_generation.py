"""Every way to call a model inside ``prune()``."""

import pytest
import torch
from transformers import DynamicCache

from multimodal import PruningConfig, prune
from multimodal.testing.contracts import (
    EXACT,
    ROTATED,
    assists,
    best,
    copied_samples,
    fitting,
    forced_tokens,
    generated,
    mixed_samples,
    recomputes,
    recording_cache,
    refused,
    rewinds,
    run_pruned,
    spread,
    turns,
)
from multimodal.testing.oracles import config, tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, batch, extended, family, sample
from multimodal.testing.tiny_models.family import FIRST_WORD

# ways to call the model


@turns
def test_attention_mask_may_be_left_out(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen):
        return
    inputs = sample(model, images=2)
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    forced = forced_tokens(1)
    with_mask, without = (run_pruned(model, given, chosen, forced) for given in (inputs, bare))
    for ours, theirs in zip(without[:3], with_mask[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@turns
def test_generate_agrees_with_manual_decoding(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen):
        return
    for inputs in (sample(model, images=2), batch(mixed_samples(model))):
        with prune(model, chosen):
            output = generated(model, inputs)
        forced = output.sequences[:, -4:]
        _, logits, decoded, _ = run_pruned(model, inputs, chosen, forced[:, :-1])
        # padding has positions here and none in generate(): the same up to rounding in the rotary embedding
        torch.testing.assert_close(logits[:, -1], output.logits[0], **ROTATED)
        torch.testing.assert_close(decoded, torch.stack(output.logits[1:], 1), **ROTATED)
        assert torch.equal(best(torch.cat([logits[:, -1:], decoded], 1)), forced)


@spread(attention=["sdpa", "eager", "fake_flash"], positions=["original", "compact"])
def test_decoding_equals_a_longer_prefill(name: str, attention: str, positions: str) -> None:
    model = tiny(name, attention)
    inputs = batch([sample(model, images=1, seed=1, size=1), sample(model, images=2, seed=2)])
    chosen = fitting(model, config(positions=positions))
    if refused(model, attention, chosen):
        return
    forced = forced_tokens(2, steps=5)
    whole = run_pruned(model, extended(model, inputs, forced), chosen)[1][:, -5:]
    torch.testing.assert_close(run_pruned(model, inputs, chosen, forced)[2], whole, **EXACT)
    with prune(model, chosen):  # several tokens at once
        output = model(**inputs)
        output = model(input_ids=forced[:, :2], **{CACHE: output[CACHE]})
        torch.testing.assert_close(output.logits, whole[:, :2], **EXACT)
        output = model(input_ids=forced[:, 2:], **{CACHE: output[CACHE]})
        torch.testing.assert_close(output.logits, whole[:, 2:], **EXACT)


@turns
def test_generating_without_cache_gives_the_same(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen) or not recomputes(model):
        return
    if not family(model).sees_uncached:
        pytest.skip("this transformers drops the images of this model")
    inputs = batch(mixed_samples(model)[:3])
    with prune(model, chosen):
        cached, uncached = generated(model, inputs), generated(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(uncached.logits, cached.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@turns
def test_copies_of_a_row_are_pruned_alike(name: str, attention: str, chosen: PruningConfig) -> None:
    """Beams and several sequences: generate() copies rows after (or before) it has encoded the images."""
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen):
        return
    inputs = batch(copied_samples(model))
    with prune(model, chosen) as pruner:
        greedy, single = generated(model, inputs), pruner.report
        sampled = generated(model, inputs, do_sample=True, num_return_sequences=3)
        copies = pruner.report
        beams = generated(model, inputs, num_beams=2, num_return_sequences=2)
        assisted = mixed_samples(model)[:2] if assists(model) else []
        # an end token that cannot come, for versions that want one
        options = {"prompt_lookup_num_tokens": 3, "eos_token_id": FIRST_WORD - 1}
        lookup = [generated(model, alone, **options) for alone in assisted]
        bare = [generated(model, alone) for alone in assisted]
    assert beams.sequences.shape == (6, inputs["input_ids"].shape[1] + 4)
    for first in range(3):
        torch.testing.assert_close(sampled.logits[0][first::3], greedy.logits[0], **EXACT)
    for row, entry in enumerate(copies):
        assert all(torch.equal(a, b) for a, b in zip(entry.kept, single[row // 3].kept, strict=True))
    for ours, theirs in zip(lookup, bare, strict=True):
        assert torch.equal(ours.sequences, theirs.sequences)


@turns
@pytest.mark.parametrize("guesses", [1, 3])
def test_rejected_guesses_are_cropped(name: str, attention: str, chosen: PruningConfig, guesses: int) -> None:
    """Assisted decoding: the first guesses are read along with the prompt."""
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen) or not rewinds(model):
        return
    inputs = sample(model, images=2)
    forced = forced_tokens(1, steps=4)
    expected = run_pruned(model, inputs, chosen, forced)[2]
    length = inputs["input_ids"].shape[1]
    wrong = forced.new_full((1, guesses), 9)
    with prune(model, chosen):
        cache = model(**extended(model, inputs, wrong), **{CACHE: recording_cache(model)})[CACHE]
        for step in range(0, 4, 2):
            cache.crop(-guesses)
            tokens = torch.cat([forced[:, step : step + 2], wrong], 1)
            mask = torch.ones(1, length + step + tokens.shape[1], dtype=torch.long)
            logits = model(input_ids=tokens, attention_mask=mask, **{CACHE: cache}).logits
            torch.testing.assert_close(logits[:, :2], expected[:, step : step + 2], **EXACT)


def test_a_cache_counts_the_unpruned_conversation() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=1)
    forced = forced_tokens(1)
    expected = run_pruned(model, inputs, config(), forced)[2]
    with prune(model, config()):
        output = model(**inputs)
        for step in range(3):
            mask = torch.ones(1, output[CACHE].get_seq_length() + 1)
            output = model(input_ids=forced[:, step : step + 1], attention_mask=mask, **{CACHE: output[CACHE]})
            torch.testing.assert_close(output.logits, expected[:, step : step + 1], **EXACT)


@pytest.mark.parametrize("name", [name for name, own in FAMILIES.items() if own.windows])
def test_caches_may_hold_more_than_the_windows(name: str) -> None:
    """A cache that was not told of windows holds everything."""
    model = tiny(name)
    inputs = batch(mixed_samples(model))
    forced = forced_tokens(4)
    expected = run_pruned(model, inputs, config(), forced)[2]
    with prune(model, config()):
        cache = model(**inputs, **{CACHE: DynamicCache()})[CACHE]
        decoded = [model(input_ids=token[:, None], **{CACHE: cache}).logits for token in forced.T]
    torch.testing.assert_close(torch.cat(decoded, 1), expected, **EXACT)


@turns
def test_beam_search_scores_its_own_sequences(name: str, attention: str, chosen: PruningConfig) -> None:
    """Beams swap caches at every step: each sequence's score must be what teacher forcing gives it."""
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen):
        return
    inputs = batch(copied_samples(model))
    with prune(model, chosen):
        beams = generated(model, inputs, num_beams=3, num_return_sequences=2, output_scores=True, length_penalty=0.0)
    for copy in range(2):
        forced = beams.sequences[copy::2, -4:]
        _, logits, decoded, _ = run_pruned(model, inputs, chosen, forced[:, :-1])
        logs = torch.cat([logits[:, -1:], decoded], 1).log_softmax(-1)
        total = logs.gather(-1, forced[..., None]).sum((1, 2))
        torch.testing.assert_close(beams.sequences_scores[copy::2], total, atol=1e-4, rtol=0)


def test_a_text_prompt_passes_through() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=0)
    stock = generated(model, inputs)
    with prune(model, config()) as pruner:
        generated(model, sample(model, images=1))
        pruned = generated(model, inputs)
    assert pruner.report == []
    assert torch.equal(stock.sequences, pruned.sequences)
    assert all(torch.equal(a, b) for a, b in zip(stock.logits, pruned.logits, strict=True))
