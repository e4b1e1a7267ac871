"""Conversations: images in later turns, text in between, caches that were filled before."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import BACKENDS, EXACT, claim, forced_tokens, generated, refused
from multimodal.testing.oracles import (
    LAYER_0_AND_INNER,
    attention_masks,
    config,
    run_masked,
    stock_masks,
    text_model,
    tiny,
)
from multimodal.testing.tiny_models import (
    BY_TOKEN,
    CACHE,
    FAMILIES,
    READS_NEW_TURNS,
    batch,
    extended,
    is_visual,
    media_of,
    sample,
    token_inputs,
)

TURNS = {
    "image, then image": ({"images": 1, "seed": 1}, {"images": 1, "seed": 2, "size": 1}),
    "text, then image": ({"images": 0, "seed": 3}, {"images": 1, "seed": 2, "size": 1}),
    "image, text, image": ({"images": 1, "seed": 1}, {"images": 0, "seed": 4}, {"images": 2, "seed": 5}),
}
CASES = [
    pytest.param(name, attention, turns, id=f"{name}-{attention}-{turns_name}")
    for name, own in FAMILIES.items()
    if "chat" not in own.gaps
    for attention in BACKENDS
    for turns_name, turns in TURNS.items()
    if attention == "sdpa" or turns_name == "image, then image"
]


def together(turns: list[dict]) -> dict:
    """The whole conversation as one prompt."""
    by_token = {key: torch.cat([turn[key] for turn in turns], 1) for key in BY_TOKEN if key in turns[0]}
    return by_token | media_of([{key: turn[key] for key in turn if key not in BY_TOKEN} for turn in turns])


def positions_of(model: PreTrainedModel, whole: dict) -> torch.Tensor:
    """The stock model's position ids of a whole prompt ``[1, L]`` or ``[axes, 1, L]``."""
    seen = []
    handle = text_model(model).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    model(**whole)
    handle.remove()
    return torch.arange(whole["input_ids"].shape[1]).unsqueeze(0) if seen[0] is None else seen[0]


@pytest.mark.parametrize(("name", "attention", "turns"), CASES)
def test_later_images_are_pruned_and_earlier_tokens_stay(
    name: str, attention: str, turns: tuple[dict, ...], record_property: Callable
) -> None:
    """Each turn equals the whole conversation under a mask that hides what was pruned in it and before."""
    model = tiny(name, attention)
    chosen = config(LAYER_0_AND_INNER)
    refusal = refused(model, attention, chosen)
    record_property(*claim(model, "chat", attention, refusal))
    if refusal:
        return
    parts = [sample(model, text=4, **turn) for turn in turns]
    forced = forced_tokens(1, steps=2)
    reference = tiny(name, "sdpa" if attention == "fake_flash" else attention)
    whole = extended(reference, together(parts), forced)
    positions = positions_of(reference, whole)
    cache = DynamicCache(config=model.config.get_text_config())
    logits, kept, first = [], [torch.zeros(0, dtype=torch.long) for _ in chosen.schedule], 0
    with prune(model, chosen) as pruner:
        for part in parts:
            last = first + part["input_ids"].shape[1]
            told = {"attention_mask": None, "position_ids": positions[..., first:last], CACHE: cache}
            logits.append(model(**part | told).logits[:, -1])
            if is_visual(part).any():
                [entry] = pruner.report
                assert entry.visual_tokens == is_visual(part).sum()
                kept = [torch.cat(pair) for pair in zip(kept, entry.kept, strict=True)]
            first = last
        for token in forced.T:
            logits.append(model(input_ids=token[:, None], **{CACHE: cache}).logits[:, -1])
    masks = attention_masks(stock_masks(reference, whole), whole, [kept], LAYER_0_AND_INNER)
    masked = run_masked(reference, whole, masks)[1]
    ends = [sum(part["input_ids"].shape[1] for part in parts[: number + 1]) - 1 for number in range(len(parts))]
    places = [*ends, ends[-1] + 1, ends[-1] + 2]
    torch.testing.assert_close(torch.stack(logits, 1), masked[:, places], **EXACT)
    assert all(len(steps) < is_visual(whole).sum() for steps in kept)


@pytest.mark.parametrize("name", ["llava_siglip", "gemma3"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("fields", [{}, {"recycling_cell": 2.5, "recycling_weight": 0.6}], ids=str)
def test_generate_goes_on_with_a_conversation(name: str, positions: str, fields: dict) -> None:
    """Handed the whole conversation again, or the new turn alone with a mask over all, generate() gives the same."""
    model = tiny(name)
    chosen = config(positions=positions, **fields)
    first, second = sample(model, images=1, seed=1, text=4), sample(model, images=1, seed=2, text=4)
    with prune(model, chosen):
        answer = generated(model, first)
    expected = None
    with prune(model, chosen):  # another block knows what was pruned in the first
        for resend in (True, False) if READS_NEW_TURNS else (True,):
            cache = copy.deepcopy(answer[CACHE])
            said = answer.sequences[:, :-1]  # the last word has not been read
            whole = torch.cat([said, answer.sequences[:, -1:], second["input_ids"]], 1)
            ids = whole if resend else whole[:, said.shape[1] :]
            told = token_inputs(model, ids) | {"attention_mask": torch.ones_like(whole), CACHE: cache}
            output = generated(model, second | told)
            steps = torch.stack(output.logits, 1)
            expected = steps if expected is None else expected
            torch.testing.assert_close(steps, expected, **EXACT)
        cache = copy.deepcopy(answer[CACHE])
        turn = torch.cat([answer.sequences[:, -1:], second["input_ids"]], 1)
        told = token_inputs(model, turn) | {"attention_mask": None, CACHE: cache}
        manual = model(**second | told).logits[:, -1]
    torch.testing.assert_close(expected[:, 0], manual, **EXACT)


@pytest.mark.parametrize("name", ["llava_onevision", "gemma3"])
def test_a_batch_of_conversations_equals_each_alone(name: str) -> None:
    model = tiny(name)
    chosen = config(recycling_cell=2.5, recycling_weight=0.6, positions="compact")
    firsts = [sample(model, images=1, seed=1, size=0), sample(model, images=2, seed=2, size=1)]
    seconds = [sample(model, images=2, seed=3, size=2, text=5), sample(model, images=1, seed=4, size=3, text=5)]
    longest = max(second["input_ids"].shape[1] for second in seconds)
    seconds = [
        extended(model, second, torch.full((1, longest - second["input_ids"].shape[1]), 11)) for second in seconds
    ]
    forced = forced_tokens(2)

    def talk(first: dict, second: dict, new: torch.Tensor) -> tuple:
        with prune(model, chosen) as pruner:
            cache = model(**first)[CACHE]
            logits = [model(**second | {"attention_mask": None, CACHE: cache}).logits[:, -1]]
            report = pruner.report
            logits += [model(input_ids=token[:, None], **{CACHE: cache}).logits[:, -1] for token in new.T]
        return torch.stack(logits, 1), report

    logits, report = talk(batch(firsts), batch(seconds), forced)
    for row in range(2):
        alone, [entry] = talk(firsts[row], seconds[row], forced[row : row + 1])
        torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=0)
        assert all(torch.equal(a, b) for a, b in zip(entry.kept, report[row].kept, strict=True))
