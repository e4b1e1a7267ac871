"""Calls whose meaning pruning would change are refused in one sentence, over every family; the block goes on.

Without images in the call the same arguments mean what they mean to the stock model.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from multimodal import prune
from multimodal.testing.contracts import (
    EXACT,
    PRUNES,
    assert_restored,
    called,
    families,
    generated,
    refuses,
    right_or_refused,
    rotated,
    snapshot,
)
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, extended, family, is_visual, sample


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


def words(model: PreTrainedModel) -> dict:
    return sample(model, images=0, text=9, seed=3)


def labels(model: PreTrainedModel, inputs: dict) -> Any:
    return model(**inputs, labels=inputs["input_ids"])


def chosen_logits(model: PreTrainedModel, inputs: dict) -> Any:
    return model(**inputs, logits_to_keep=torch.tensor([1, inputs["input_ids"].shape[1] - 1]))


def ready_mask(model: PreTrainedModel, inputs: dict) -> Any:
    length = inputs["input_ids"].shape[1]
    return model(**inputs | {"attention_mask": torch.ones(1, 1, length, length).tril().bool()})


def static_cache(model: PreTrainedModel, inputs: dict) -> Any:
    return model(**inputs, **{CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=400)})


def packed(model: PreTrainedModel, inputs: dict) -> Any:
    """A prompt and another one in its row: positions start again, and no mask tells them apart."""
    length, axes = inputs["input_ids"].shape[1], family(model).rotary_axes
    both = extended(model, inputs, torch.tensor([[11, 12, 13, 14]])) | {"attention_mask": None}
    positions = torch.cat([torch.arange(length), torch.arange(4)])[None]
    positions = positions if axes == 1 else positions.expand(axes + 1, 1, -1)  # an axis that counts text comes first
    return model(**both, position_ids=positions, use_cache=False)


def hidden(share: float) -> Callable:
    """A mask that hides visual tokens as if they were padding."""

    def call(model: PreTrainedModel, inputs: dict) -> Any:
        places = is_visual(inputs)[0].nonzero()[:, 0]
        mask = inputs["attention_mask"].clone()
        mask[:, places[: int(share * len(places))]] = 0
        return model(**inputs | {"attention_mask": mask})

    return call


def embedded(model: PreTrainedModel, inputs: dict) -> dict:
    """A prompt as embeddings alone: nothing says which of them are visual."""
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


ANYWAY: dict[str, Callable[[PreTrainedModel, dict], Any]] = {
    "labels": labels,
    "chosen logits": chosen_logits,
    "ready mask": ready_mask,
    "static cache": static_cache,
    "packed prompts": packed,
}
REFUSED = ANYWAY | {
    "some of an image hidden": hidden(0.3),
    "an image hidden": hidden(1.0),
    "embeddings alone": lambda model, inputs: model(**embedded(model, inputs)),
}


@cache
def references(name: str) -> tuple[Tensor, Tensor]:
    model = tiny(name)
    inputs = prompt(model)
    stock = model(**inputs, output_hidden_states=True).logits  # transformers hooks what it records, once
    with prune(model, PRUNES):
        return stock, model(**inputs).logits


def assert_refused(name: str, call: Callable[[PreTrainedModel, dict], Any]) -> None:
    """In one sentence, or, where the stock model fails by itself, by that."""
    model = tiny(name)
    inputs = prompt(model)
    stock, pruned = references(name)
    before, own = snapshot(model), None
    with prune(model, PRUNES):
        try:
            with refuses():
                call(model, inputs)
        except (RuntimeError, IndexError, ValueError) as error:
            own = type(error)
        torch.testing.assert_close(model(**inputs).logits, pruned, **EXACT)
    assert_restored(model, inputs, before, stock)
    if own is not None:
        with pytest.raises(own):
            call(model, inputs)


@pytest.mark.parametrize(("name", "call"), rotated(REFUSED))
def test_calls_that_pruning_would_change_are_refused(name: str, call: str) -> None:
    assert_refused(name, REFUSED[call])


@families
def test_generating_from_embeddings_alone_is_refused(name: str) -> None:
    model = tiny(name)
    given = embedded(model, prompt(model))
    called(lambda: generated(model, given, max_new_tokens=1))
    assert_refused(name, lambda model, inputs: generated(model, given, max_new_tokens=1))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith("_moe")])
@pytest.mark.parametrize("where", ["argument", "config"])
def test_router_logits_are_refused(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come by token: the loss over them would be of another prompt."""
    if where == "argument":
        assert_refused(name, lambda model, inputs: model(**inputs, output_router_logits=True))
        return
    if not hasattr(tiny(name).config.get_text_config(), "output_router_logits"):
        pytest.skip("this transformers has no such setting")

    def call(model: PreTrainedModel, inputs: dict) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(model.config.get_text_config(), "output_router_logits", True)
            return model(**inputs)

    assert_refused(name, call)


@pytest.mark.parametrize(("name", "call"), rotated(ANYWAY))
def test_without_images_they_mean_the_same(name: str, call: str) -> None:
    model = tiny(name)
    if family(model).rotary_axes > 1:
        model(**prompt(model))  # the stock model remembers the last one with an image
    stock = called(lambda: ANYWAY[call](model, words(model)))
    with prune(model, PRUNES):
        found = ANYWAY[call](model, words(model))
    torch.testing.assert_close(found.logits, stock.logits, **EXACT)
    if call == "labels":
        torch.testing.assert_close(found.loss, stock.loss, **EXACT)


@families
def test_what_follows_a_pruned_prompt_is_right_or_refused(name: str) -> None:
    """A token as an embedding; a ready mask over the unpruned conversation."""
    model = tiny(name)
    inputs, token = prompt(model), torch.tensor([[11]])
    length = inputs["input_ids"].shape[1]
    ways = (
        {"inputs_embeds": model.get_input_embeddings()(token)},
        {"input_ids": token, "attention_mask": torch.ones(1, 1, 1, length + 1, dtype=torch.bool)},
    )
    with prune(model, PRUNES):
        expected = model(input_ids=token, **{CACHE: model(**inputs)[CACHE]}).logits
        for given in ways:
            cache = model(**inputs)[CACHE]
            right_or_refused(lambda given=given, cache=cache: model(**given, **{CACHE: cache}).logits, expected)
