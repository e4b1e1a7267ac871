"""Every way to call a model, over every family.

With a config that keeps everything each call is the stock model's; with one that prunes it is the masked oracle's, or
the same as the plain call inside the block. Where the stock model itself fails or answers differently, there is nothing
to be equal to.
"""

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
    KEEPS_ALL,
    PRUNES,
    called,
    families,
    forced_tokens,
    rotated,
)
from multimodal.testing.oracles import noted_positions, run_hidden, text_model, tiny
from multimodal.testing.tiny_models import CACHE, extended, family, sample

FORCED = forced_tokens(1, steps=2)


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


# one prompt and two tokens, in many ways


def spoken(
    call: Callable[..., Any],
    first: dict,
    later: Callable[[int], dict] = lambda read: {},
    name: str = CACHE,
    outputs: Callable[[Any], tuple] = lambda output: (output.logits, output[CACHE]),
) -> Tensor:
    """Last logits of a prompt, then of two more tokens, read one by one ``[1, 3, words]``.

    Args:
        call: the model, or what stands for it.
        first: arguments of the prompt.
        later: further arguments of a token, by how many of them have been read.
        name: of the cache argument.
        outputs: logits and cache, from what the model returns.
    """
    logits, cache = outputs(call(**first))
    steps = [logits[:, -1]]
    for read, token in enumerate(FORCED.T):
        logits, cache = outputs(call(**{"input_ids": token[:, None], name: cache} | later(read)))
        steps.append(logits[:, -1])
    return torch.stack(steps, 1)


def plainly(model: PreTrainedModel, inputs: dict) -> Tensor:
    return spoken(model, inputs)


def with_masks(model: PreTrainedModel, inputs: dict) -> Tensor:
    """Masks over the unpruned conversation, as generate() passes them; several rotary axes want positions beside."""
    length = inputs["input_ids"].shape[1]
    masks = [{"attention_mask": torch.ones(1, length + read + 1, dtype=torch.long)} for read in range(2)]
    if family(model).rotary_axes > 1:
        positions = stock_positions(model)
        masks = [own | {"position_ids": positions[..., length + read, None]} for read, own in enumerate(masks)]
    return spoken(model, inputs, masks.__getitem__)


def with_positions(model: PreTrainedModel, inputs: dict) -> Tensor:
    positions, length = stock_positions(model), inputs["input_ids"].shape[1]
    first = inputs | {"position_ids": positions[..., :length]}
    return spoken(model, first, lambda read: {"position_ids": positions[..., length + read, None]})


def as_tuples(model: PreTrainedModel, inputs: dict) -> Tensor:
    """And of the last logits alone."""
    told = {"return_dict": False, "logits_to_keep": 1}

    def outputs(parts: tuple) -> tuple:
        [cache] = [part for part in parts if isinstance(part, DynamicCache)]
        return parts[0], cache

    return spoken(model, inputs | told, lambda read: told, outputs=outputs)


def several_tokens(model: PreTrainedModel, inputs: dict) -> Tensor:
    first = model(**inputs)
    return torch.cat([first.logits[:, -1:], model(input_ids=FORCED, **{CACHE: first[CACHE]}).logits], 1)


def without_cache(model: PreTrainedModel, inputs: dict) -> Tensor:
    output = model(**extended(model, inputs, FORCED), use_cache=False)
    assert output.get(CACHE) is None
    return output.logits[:, -3:]


def embedded(model: PreTrainedModel, inputs: dict) -> Tensor:
    """Embeddings of the token ids, placeholders included, beside the pixels."""
    first = {key: value for key, value in inputs.items() if key != "input_ids"}
    first["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    if family(model).rotary_axes > 1:  # which the stock model reads off token ids
        first["position_ids"] = stock_positions(model)[..., : inputs["input_ids"].shape[1]]
    return spoken(model, first)


def on_another_default_device(model: PreTrainedModel, inputs: dict) -> Tensor:
    """Stands in for ``torch.set_default_device("cuda")``: a tensor that is made without a device fails."""
    with torch.device("meta"):
        return spoken(model, inputs)


def with_gradients(model: PreTrainedModel, inputs: dict) -> Tensor:
    with torch.enable_grad():
        return spoken(model, inputs).detach()


def in_inference_mode(model: PreTrainedModel, inputs: dict) -> Tensor:
    with torch.inference_mode():
        return spoken(model, inputs).clone()


def by_cache_name(name: str) -> Callable:
    """The name of the cache argument, which newer versions have changed; they take both."""

    def call(model: PreTrainedModel, inputs: dict) -> Tensor:
        cache = DynamicCache(config=text_model(model).config)

        def outputs(output: Any) -> tuple:
            assert output[CACHE] is cache
            return output.logits, cache

        return spoken(model, inputs | {name: cache}, name=name, outputs=outputs)

    return call


def at_the_base(name: str) -> Callable:
    """The same at the model below the head."""

    def call(model: PreTrainedModel, inputs: dict) -> Tensor:
        def outputs(output: Any) -> tuple:
            return model.lm_head(output.last_hidden_state), output[CACHE]

        first = inputs | {name: DynamicCache(config=text_model(model).config)}
        return spoken(model.model, first, name=name, outputs=outputs)

    return call


NAMES = sorted({"past_key_values", CACHE})
CALLS: dict[str, Callable[[PreTrainedModel, dict], Tensor]] = {
    "with masks": with_masks,
    "with positions": with_positions,
    "last logits as tuples": as_tuples,
    "several tokens": several_tokens,
    "without a cache": without_cache,
    "embeddings": embedded,
    "default device": on_another_default_device,
    **{name: by_cache_name(name) for name in NAMES},
    **{f"{name} at the base": at_the_base(name) for name in NAMES},
    "gradients": with_gradients,
    "inference mode": in_inference_mode,
}


@cache
def stock_positions(model: PreTrainedModel) -> Tensor:
    """Position ids ``[1, L + 2]`` or ``[axes, 1, L + 2]`` of the prompt and its two tokens."""
    inputs = extended(model, prompt(model), FORCED)
    with noted_positions(model) as noted:
        model(**inputs)
    return noted[0] if noted else torch.arange(inputs["input_ids"].shape[1])[None]


@cache
def references(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What the plain call gives: the stock model in one pass over all, keeping everything, pruned."""
    model = tiny(name)
    inputs = prompt(model)
    stock = model(**extended(model, inputs, FORCED)).logits[:, -3:]
    with prune(model, KEEPS_ALL):
        same = plainly(model, inputs)
    with prune(model, PRUNES):
        return stock, same, plainly(model, inputs)


@families
def test_the_plain_call_is_right(name: str) -> None:
    model = tiny(name)
    inputs = prompt(model)
    stock, same, pruned = references(name)
    torch.testing.assert_close(same, stock, **EXACT)
    with prune(model, PRUNES) as pruner:
        model(**inputs)
    logits, _ = run_hidden(model, extended(model, inputs, FORCED), [entry.kept for entry in pruner.report])
    torch.testing.assert_close(pruned, logits[:, -3:], **EXACT)
    assert (pruned - stock).abs().max() > 1e-2  # the tests below have teeth


@pytest.mark.parametrize(("name", "call"), rotated(CALLS))
def test_a_call_is_the_plain_call(name: str, call: str) -> None:
    model = tiny(name)
    inputs = prompt(model)
    stock, _, pruned = references(name)
    theirs = called(lambda: CALLS[call](model, inputs))
    if theirs.shape != stock.shape or (theirs - stock).abs().max() > 1e-4:
        pytest.skip("the stock model's answer is not that of its one pass over all")
    with prune(model, KEEPS_ALL):
        torch.testing.assert_close(CALLS[call](model, inputs), theirs, **EXACT)
    with prune(model, PRUNES):
        torch.testing.assert_close(CALLS[call](model, inputs), pruned, **EXACT)
