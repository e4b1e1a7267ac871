"""The cache of a pruned prompt, over every family: it stays the caller's, and what was pruned follows its rows."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import (
    EXACT,
    PRUNES,
    THOROUGH,
    called,
    families,
    forced_tokens,
    generated,
    recording_cache,
    rewinds,
    right_or_refused,
)
from multimodal.testing.oracles import run_hidden, text_model, tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, batch, extended, family, sample

FORCED = forced_tokens(3, steps=3)


def prompts(model: PreTrainedModel) -> dict:
    """Three rows, two of them padded, one without an image."""
    return batch([prompt(model), sample(model, images=0, text=6, seed=3), sample(model, images=1, text=5, seed=4)])


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


def read(model: PreTrainedModel, cache: Any, tokens: Tensor, **told: Tensor) -> Tensor:
    """Logits of tokens ``[B, n]`` that follow a cache."""
    return model(input_ids=tokens, **told, **{CACHE: cache}).logits


# what the cache says of itself


@families
def test_the_cache_stays_the_callers(name: str) -> None:
    """Its own object, a DynamicCache still, as long as the unpruned conversation, padding counted."""
    model = tiny(name)
    inputs = prompts(model)
    length = inputs["input_ids"].shape[1]
    cache = DynamicCache(config=text_model(model).config)
    with prune(model, PRUNES):
        output = model(**inputs, **{CACHE: cache})
        assert output[CACHE] is cache and isinstance(cache, DynamicCache)
        assert cache.get_seq_length() == length
        for number, token in enumerate(FORCED.T, 1):
            assert model(input_ids=token[:, None], **{CACHE: cache})[CACHE] is cache
            assert cache.get_seq_length() == length + number
        assert cache.layers[-1].keys.shape[2] < length  # and holds less
        made = model(**inputs)[CACHE]
        assert isinstance(made, DynamicCache) and made.get_seq_length() == length
        written = generated(model, inputs, max_new_tokens=3)
        assert written[CACHE].get_seq_length() == written.sequences.shape[1] - 1
    assert cache.get_seq_length() == length + 3


# rows and lengths that change


ROWS: dict[str, tuple[Callable[[Any], None], list[int]]] = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([1, 2])), [1, 2]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
}


@cache
def unchanged(name: str) -> list[Tensor]:
    """Logits of three tokens that follow each row ``[B, 1, words]``."""
    model = tiny(name)
    with prune(model, PRUNES):
        cache = model(**prompts(model))[CACHE]
        return [read(model, cache, token[:, None]) for token in FORCED.T]


@pytest.mark.parametrize(
    ("name", "change", "masked"),
    [
        (name, change, masked)
        for name in FAMILIES
        for change in ROWS
        for masked in (False, True)[: 1 + (name in THOROUGH)]
    ],
)
def test_what_was_pruned_follows_the_rows(name: str, change: str, masked: bool) -> None:
    """Each row of the changed cache goes on as the row it came from, told a mask or not."""
    model = tiny(name)
    inputs, (apply, rows) = prompts(model), ROWS[change]
    masks, expected = extended(model, inputs, FORCED)["attention_mask"][rows], unchanged(name)
    with prune(model, PRUNES):
        cache = model(**inputs)[CACHE]
        read(model, cache, FORCED[:, :1])
        apply(cache)
        for step in (1, 2):
            told = {"attention_mask": masks[:, : step - 2 or None]} if masked else {}
            found = read(model, cache, FORCED[rows, step : step + 1], **told)
            torch.testing.assert_close(found, expected[step][rows], **EXACT)


@families
def test_cropping_counts_tokens_of_the_unpruned_conversation(name: str) -> None:
    """Tokens after the prompt, then some of the prompt's own."""
    model = tiny(name)
    if not rewinds(model):
        pytest.skip("windows of this transformers cannot be taken back")
    inputs, forced = prompt(model), FORCED[:1]
    length = inputs["input_ids"].shape[1]
    with prune(model, PRUNES):
        cache = model(**inputs, **{CACHE: recording_cache(model)})[CACHE]
        expected = torch.cat([read(model, cache, token[:, None]) for token in forced.T], 1)
        cache = model(**inputs, **{CACHE: recording_cache(model)})[CACHE]
        read(model, cache, torch.tensor([[11, 12]]))
        cache.crop(-2)
        assert cache.get_seq_length() == length
        torch.testing.assert_close(read(model, cache, forced[:, :2]), expected[:, :2], **EXACT)
        cache.crop(-1)
        assert cache.get_seq_length() == length + 1
        torch.testing.assert_close(read(model, cache, forced[:, 1:]), expected[:, 1:], **EXACT)
        if family(model).following_type == 0:  # else a prompt attends both ways
            cache = model(**inputs, **{CACHE: recording_cache(model)})[CACHE]
            read(model, cache, forced)
            cache.crop(-5)
            assert cache.get_seq_length() == length - 2
            again = torch.cat([inputs["input_ids"][:, -2:], forced], 1)
            torch.testing.assert_close(read(model, cache, again)[:, 2:], expected, **EXACT)


def test_older_versions_crop_to_a_length_of_the_unpruned_conversation() -> None:
    model = tiny("llava_siglip")
    inputs, forced = prompt(model), FORCED[:1]
    length = inputs["input_ids"].shape[1]
    stock = model(**inputs)[CACHE]
    called(lambda: stock.crop(length - 1))
    with prune(model, PRUNES):
        cache = model(**inputs)[CACHE]
        expected = read(model, cache, forced)
        cache.crop(length + 1)
        assert cache.get_seq_length() == length + 1
        torch.testing.assert_close(read(model, cache, forced[:, 1:]), expected[:, 1:], **EXACT)


@families
def test_a_turn_with_an_image_may_be_taken_back(name: str) -> None:
    """Right or refused."""
    model = tiny(name)
    if not rewinds(model) or "chat" in family(model).gaps:
        pytest.skip("cannot be taken back, or has no later turns")
    first, second = prompt(model), sample(model, images=1, text=4, seed=2)
    with prune(model, PRUNES):
        expected = read(model, model(**first)[CACHE], FORCED[:1])
        cache = model(**first, **{CACHE: recording_cache(model)})[CACHE]
        model(**second | {"attention_mask": None}, **{CACHE: cache})

        def again() -> Tensor:
            cache.crop(-second["input_ids"].shape[1])
            return read(model, cache, FORCED[:1])

        right_or_refused(again, expected)


@pytest.mark.parametrize("name", THOROUGH)
def test_half_an_image_may_be_taken_back(name: str) -> None:
    """Right or refused: of the tokens that count, some were pruned."""
    model = tiny(name)
    inputs = prompt(model)
    length, left = inputs["input_ids"].shape[1], 40
    with prune(model, PRUNES) as pruner:
        model(**inputs)
    kept = [step[step < left] for step in pruner.report[0].kept]
    whole = extended(model, inputs, FORCED[:1])
    whole["attention_mask"][:, left:length] = 0
    whole["position_ids"] = torch.cat([torch.arange(length), left + torch.arange(3)])[None]
    expected = run_hidden(model, whole, [kept])[0][:, -3:]

    def again() -> Tensor:
        cache = model(**inputs)[CACHE]
        cache.crop(left - length)
        assert cache.get_seq_length() == left
        return read(model, cache, FORCED[:1])

    with prune(model, PRUNES):
        right_or_refused(again, expected)


@families
def test_a_cache_that_is_reset_is_empty(name: str) -> None:
    model = tiny(name)
    first, second = prompt(model), sample(model, images=1, text=6, seed=2)
    stock = model(**first)[CACHE]
    stock.reset()
    again = called(lambda: model(**second, **{CACHE: stock}).logits)
    if not torch.equal(again, model(**second).logits):
        pytest.skip("this transformers zeroes what it resets, and reads it")
    with prune(model, PRUNES):
        expected = model(**second).logits
        cache = model(**first)[CACHE]
        cache.reset()
        assert cache.get_seq_length() == 0
        torch.testing.assert_close(model(**second, **{CACHE: cache}).logits, expected, **EXACT)
