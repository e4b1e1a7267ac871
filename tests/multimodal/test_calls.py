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
from contracts import (
    EXACT,
    KEEPS_ALL,
    PRUNES,
    THOROUGH,
    called,
    families,
    forced_tokens,
    padded_on_the_right,
)
from oracles import run_hidden, text_model, tiny
from tiny_models import CACHE, FAMILIES, WORDS, batch, build, extended, family, is_visual, sample
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from multimodal import prune

FORCED = forced_tokens(1, steps=2)


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


def prompts(model: PreTrainedModel) -> list[dict]:
    """An image, none, an image of another size: rows of three lengths."""
    return [
        sample(model, images=1, text=3, seed=1, size=1),
        sample(model, images=0, text=6, seed=3),
        sample(model, images=1, text=7, seed=4, size=2),
    ]


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
RARE = ("several tokens", "gradients", "inference mode")  # of which the thorough families are told


@cache
def stock_positions(model: PreTrainedModel) -> Tensor:
    """Position ids ``[1, L + 2]`` or ``[axes, 1, L + 2]`` of the prompt and its two tokens."""
    inputs = extended(model, prompt(model), FORCED)
    seen: list[Any] = []
    handle = text_model(model).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    return torch.arange(inputs["input_ids"].shape[1])[None] if seen[0] is None else seen[0]


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


@pytest.mark.parametrize(
    ("name", "call"), [(name, call) for name in FAMILIES for call in CALLS if name in THOROUGH or call not in RARE]
)
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


@families
def test_hidden_states_are_those_of_every_layer(name: str) -> None:
    model = tiny(name)
    inputs = prompt(model)
    stock = model(**inputs, output_hidden_states=True).hidden_states
    with prune(model, KEEPS_ALL):
        same = model(**inputs, output_hidden_states=True).hidden_states
    for ours, theirs in zip(same, stock, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    with prune(model, PRUNES) as pruner:
        found = model(**inputs, output_hidden_states=True).hidden_states
    expected = run_hidden(model, inputs, [entry.kept for entry in pruner.report])[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[:, -1], theirs[:, -1], **EXACT)
    assert found[-1].shape[1] < stock[-1].shape[1]


@families
@pytest.mark.parametrize("where", ["argument", "config"])
def test_attention_weights_may_be_asked_for(name: str, where: str) -> None:
    """In the settings of the model, its tower is asked, too."""
    model = tiny(name, "eager")
    inputs, settings = prompt(model), [model.config, model.config.get_text_config(), model.config.vision_config]
    asked = {"output_attentions": True} if where == "argument" else {}

    def read() -> Any:
        for own in settings if where == "config" else ():
            own.output_attentions = True
        try:
            return model(**inputs, **asked)
        finally:
            for own in settings if where == "config" else ():
                own.output_attentions = False

    stock = called(read)
    with prune(model, KEEPS_ALL):
        same = read()
        torch.testing.assert_close(same.logits, stock.logits, **EXACT)
        for ours, theirs in zip(same.attentions or (), stock.attentions or (), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)
    with prune(model, PRUNES):
        plain = model(**inputs)
        torch.testing.assert_close(read().logits, plain.logits, **EXACT)
        torch.testing.assert_close(model(**inputs).logits, plain.logits, **EXACT)


@families
def test_embeddings_may_be_resized(name: str) -> None:
    """Before the block and inside of it."""
    model = build(name)
    inputs = prompt(model)
    with prune(model, PRUNES):
        expected = model(**inputs).logits
        model.resize_token_embeddings(WORDS + 5)
        torch.testing.assert_close(model(**inputs).logits[..., :WORDS], expected, **EXACT)
    with prune(model, PRUNES):
        torch.testing.assert_close(model(**inputs).logits[..., :WORDS], expected, **EXACT)


# rows that are padded


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_places_tell_where_outputs_belong(name: str, side: str) -> None:
    """Outputs are padded on the left; each has a place in the row as it was given."""
    model = tiny(name)
    inputs = batch(prompts(model)) if side == "left" else padded_on_the_right(prompts(model))
    stock = model(**inputs).logits
    for chosen in (KEEPS_ALL, PRUNES):
        with prune(model, chosen) as pruner:
            logits = model(**inputs).logits
        report = pruner.report
        kept = [entry.kept for entry in report]
        schedule = [(step.layer, step.keep_ratio) for step in chosen.schedule]
        expected = stock if chosen is KEEPS_ALL else run_hidden(model, inputs, kept, schedule)[0]
        for row, entry in enumerate(report):
            assert entry.places.dtype == torch.long and entry.places.shape == (logits.shape[1],)
            padding = int((entry.places < 0).sum())
            assert (entry.places[:padding] == -1).all()
            own = inputs["attention_mask"][row].nonzero()[:, 0]
            text = own[~is_visual(inputs)[row, own]]
            assert torch.equal(entry.places[padding:], torch.cat([text, own[entry.kept[-1]]]).unique())
            torch.testing.assert_close(logits[row, padding:], expected[row, entry.places[padding:]], **EXACT)


@pytest.mark.parametrize("name", [name for name, own in FAMILIES.items() if own.rotary_axes == 1])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "no mask"])
def test_rows_padded_on_the_right_go_on(name: str, masked: bool) -> None:
    """New tokens come after the padding, which stays hidden with a mask over all or without one."""
    model = tiny(name)
    inputs, forced = padded_on_the_right(prompts(model)), forced_tokens(3, steps=2)
    whole = extended(model, inputs, forced)
    with prune(model, PRUNES) as pruner:
        output, steps = model(**inputs), []
        report = pruner.report
        for read, token in enumerate(forced.T, 1):
            mask = {"attention_mask": whole["attention_mask"][:, : read - 2 or None]} if masked else {}
            output = model(input_ids=token[:, None], **mask, **{CACHE: output[CACHE]})
            steps.append(output.logits)
    expected = run_hidden(model, whole, [entry.kept for entry in report])[0]
    torch.testing.assert_close(torch.cat(steps, 1), expected[:, -2:], **EXACT)
