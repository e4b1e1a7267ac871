"""Copies of a pruned cache, what it keeps alive, and where it may be used, over every family."""

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache, PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import EXACT, PRUNES, families, forced_tokens, generated, refuses, rotated
from multimodal.testing.oracles import config, hooked, tiny
from multimodal.testing.tiny_models import CACHE, batch, extended, sample

FORCED = forced_tokens(3, steps=3)


def prompts(model: PreTrainedModel) -> dict:
    return batch([prompt(model), sample(model, images=0, text=6, seed=3), sample(model, images=1, text=5, seed=4)])


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


def read(model: PreTrainedModel, cache: Any, tokens: Tensor) -> Tensor:
    """Logits of tokens ``[B, n]`` that follow a cache."""
    return model(input_ids=tokens, **{CACHE: cache}).logits


# copies


class NoModules(pickle.Pickler):
    """Fails where a module, or a weight of one, would be stored."""

    def reducer_override(self, obj: Any) -> Any:
        assert not isinstance(obj, nn.Module | nn.Parameter), f"a {type(obj).__name__} goes with the cache"
        return NotImplemented


def saved(cache: Any) -> bytes:
    file = io.BytesIO()
    torch.save(cache, file)
    return file.getvalue()


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "torch.save": lambda cache: torch.load(io.BytesIO(saved(cache)), weights_only=False),
}


@pytest.mark.parametrize(("name", "way"), rotated(COPIES, share=3))
def test_copies_go_on_alike(name: str, way: str) -> None:
    """In this block and in a later one, and the original as if there were no copy."""
    model = tiny(name)
    inputs = prompts(model)
    with prune(model, PRUNES):
        cache = model(**inputs)[CACHE]
        copies = [COPIES[way](cache) for _ in range(2)]
        for made in copies:
            assert isinstance(made, DynamicCache) and made.get_seq_length() == cache.get_seq_length()
        early = read(model, copies[0], FORCED)
        expected = read(model, cache, FORCED)
        copies.append(COPIES[way](cache))
        further = read(model, cache, FORCED)
    torch.testing.assert_close(early, expected, **EXACT)
    with prune(model, config(name="uniform")):
        torch.testing.assert_close(read(model, copies[1], FORCED), expected, **EXACT)
        torch.testing.assert_close(read(model, copies[2], FORCED), further, **EXACT)


@families
def test_a_saved_cache_holds_nothing_of_the_model(name: str) -> None:
    model = tiny(name)
    inputs = prompts(model)
    stock = len(saved(model(**inputs)[CACHE]))
    with prune(model, PRUNES):
        cache = model(**inputs)[CACHE]
        read(model, cache, FORCED)
        NoModules(io.BytesIO()).dump(cache)
    NoModules(io.BytesIO()).dump(cache)
    assert len(saved(cache)) < stock + 20_000 < stock + sum(p.nbytes for p in model.parameters()) / 5


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("llava_siglip", "vision_tower"),
        ("gemma3", "vision_tower"),
        ("qwen2_5_vl", "visual"),
        ("smolvlm", "vision_model"),
    ],
)
def test_nothing_of_the_tower_outlives_the_prompt(name: str, tower: str) -> None:
    """Pixels, queries and keys would fill the memory that pruning saves."""
    model = tiny(name)
    inputs = prompts(model)
    storages = [StorageWeakRef(inputs["pixel_values"].untyped_storage())]
    linear = [module for module in model.model.get_submodule(tower).modules() if isinstance(module, nn.Linear)]

    def note(_: nn.Module, args: Any, output: Tensor) -> None:
        storages.append(StorageWeakRef(output.untyped_storage()))

    with prune(model, PRUNES):
        with hooked([module.register_forward_hook(note) for module in linear]):
            cache = model(**inputs)[CACHE]
        del inputs
        gc.collect()
        assert len(storages) > 10 and [storage.expired() for storage in storages] == [True] * len(storages)
        read(model, cache, FORCED)


# outside of a block


@families
def test_a_pruned_cache_is_refused_outside_of_a_block(name: str) -> None:
    """Its layers hold tokens that no stock mask or position knows; back in a block it goes on."""
    model = tiny(name)
    inputs = prompt(model)
    with prune(model, PRUNES):
        cache = model(**inputs)[CACHE]
        expected = read(model, model(**inputs)[CACHE], FORCED[:1])
    with refuses():
        read(model, cache, FORCED[:1, :1])
    whole = extended(model, inputs, FORCED[:1])
    given = {key: value for key, value in whole.items() if key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    with refuses():
        generated(model, given | {CACHE: cache}, max_new_tokens=2)
    with prune(model, PRUNES):
        torch.testing.assert_close(read(model, cache, FORCED[:1]), expected, **EXACT)


def test_a_pruned_cache_is_refused_while_only_another_model_is_pruned() -> None:
    model, other = tiny("llava_siglip"), tiny("llava_clip")
    with prune(model, PRUNES):
        cache = model(**prompt(model))[CACHE]
    with prune(other, PRUNES), refuses():
        read(model, cache, FORCED[:1, :1])


@families
def test_a_cache_of_words_goes_on_outside(name: str) -> None:
    model = tiny(name)
    words = sample(model, images=0, text=9, seed=3)
    model(**prompt(model))  # the stock model of several rotary axes remembers the last one with an image
    expected = read(model, model(**words)[CACHE], FORCED[:1])
    with prune(model, PRUNES):
        cache = model(**words)[CACHE]
    torch.testing.assert_close(read(model, cache, FORCED[:1]), expected, **EXACT)
