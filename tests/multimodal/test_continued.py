"""Conversations that go on from a cache, over every family that has any.

The whole conversation again or the new turn alone, with and without a mask, with and without another image; by
generate() and by hand. Keeping everything, each is the stock model's; pruned, the masked oracle's over the whole
conversation.
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import EXACT, KEEPS_ALL, PRUNES, THOROUGH, called, forced_tokens, generated
from multimodal.testing.oracles import noted_positions, run_hidden, tiny
from multimodal.testing.tiny_models import (
    BY_TOKEN,
    CACHE,
    FAMILIES,
    READS_NEW_TURNS,
    family,
    is_visual,
    media_of,
    sample,
    token_inputs,
)

ANSWER = forced_tokens(1, steps=2)
TURNS: dict[str, dict[str, int]] = {
    "words": {"images": 0, "text": 5},
    "an image": {"images": 1, "text": 4, "seed": 2, "size": 3},
}
CALLS = {
    "all again with a mask": {"again": True, "mask": True, "generate": True},
    "all again": {"again": True, "mask": False, "generate": True},
    "the turn with a mask": {"again": False, "mask": True, "generate": True},
    "by hand": {"again": False, "mask": False, "generate": False},
    "by hand with a mask": {"again": False, "mask": True, "generate": False},
}
COMMON = (("words", "all again"), ("an image", "all again with a mask"), ("an image", "by hand"))
CASES = [
    (name, turn, call)
    for name, own in FAMILIES.items()
    if "chat" not in own.gaps
    for turn in TURNS
    for call in CALLS
    if name in THOROUGH or own.rotary_axes > 1 or (turn, call) in COMMON
    if READS_NEW_TURNS or CALLS[call]["again"]
]


class Conversation(NamedTuple):
    """What came of two turns.

    Args:
        logits: of the last tokens ``[1, n, words]``.
        whole: inputs of all but the very last token, as one prompt.
        kept: visual tokens of both turns, if any were pruned.
    """

    logits: Tensor
    whole: dict
    kept: list[list[Tensor]]


def media(turn: dict) -> dict:
    return {key: value for key, value in turn.items() if key not in BY_TOKEN}


def turns(model: PreTrainedModel, turn: str) -> tuple[dict, dict]:
    return sample(model, images=1, text=4, seed=1), sample(model, **TURNS[turn])


def following(model: PreTrainedModel, ids: Tensor, new: int, mask: bool) -> dict:
    """Inputs of a conversation's last tokens; Gemma 3 is told what all of it stands for, the others of those alone."""
    whole, told = token_inputs(model, ids), token_inputs(model, ids[:, -new:])
    if "token_type_ids" in whole:
        told["token_type_ids"] = whole["token_type_ids"]
    return told | {"attention_mask": whole["attention_mask"] if mask else None}


def converse(model: PreTrainedModel, turn: str, call: str, pruner: Any = None) -> Conversation:
    first, second = turns(model, turn)
    again, mask, by_generate = CALLS[call].values()
    cache = model(**first)[CACHE]
    reports = [] if pruner is None else [pruner.report]
    model(input_ids=ANSWER[:, :1], **{CACHE: cache})  # the last word of an answer has not been read
    ids = torch.cat([first["input_ids"], ANSWER, second["input_ids"]], 1)
    new = ids.shape[1] if again else 1 + second["input_ids"].shape[1]
    told = media(second) | following(model, ids, new, mask) | {CACHE: cache}
    if by_generate:
        output = generated(model, told, max_new_tokens=2)
        logits, ids = torch.stack(output.logits, 1), torch.cat([ids, output.sequences[:, -2:-1]], 1)
    else:
        logits = model(**told).logits[:, -1:]
    if pruner is not None and is_visual(second).any():
        reports.append(pruner.report)
    steps = zip(*(entry.kept for [entry] in reports), strict=True)
    whole = token_inputs(model, ids) | media_of([media(first), media(second)])
    return Conversation(logits, whole, [[torch.cat(step) for step in steps]])


@pytest.mark.parametrize(("name", "turn", "call"), CASES)
def test_conversations_go_on(name: str, turn: str, call: str) -> None:
    """The stock model of several rotary axes gives a later image positions that its whole conversation would not."""
    model = tiny(name)
    with noted_positions(model) as noted:
        stock = called(lambda: converse(model, turn, call))
    with prune(model, KEEPS_ALL):
        same = converse(model, turn, call)
    several = family(model).rotary_axes > 1
    positions = {"position_ids": torch.cat([ids.expand(3, 1, -1) for ids in noted], -1)} if several else {}
    if not torch.allclose(same.logits, stock.logits, **EXACT):
        told = positions if READS_NEW_TURNS else {}  # older versions err in positions, too
        at_once = model(**stock.whole | told).logits[:, -stock.logits.shape[1] :]
        if not torch.allclose(stock.logits, at_once, **EXACT):
            pytest.skip("the stock model's answer is not that of its one pass over all")
    torch.testing.assert_close(same.logits, stock.logits, **EXACT)
    with prune(model, PRUNES) as pruner:
        found = converse(model, turn, call, pruner)
    expected = run_hidden(model, found.whole | positions, found.kept)[0]
    torch.testing.assert_close(found.logits, expected[:, -found.logits.shape[1] :], **EXACT)
    assert (found.logits - stock.logits)[:, 0].abs().max() > 1e-3  # the test has teeth


@pytest.mark.parametrize("name", [name for name, own in FAMILIES.items() if "chat" not in own.gaps])
def test_a_cache_goes_on_in_a_later_block(name: str) -> None:
    """What was pruned is known to a later block, also to one that prunes otherwise."""
    model = tiny(name)
    first, second = turns(model, "words")
    new = second["input_ids"]

    def go_on(answer: Any) -> Tensor:
        return model(input_ids=new, **{CACHE: answer[CACHE]}).logits

    with prune(model, PRUNES):
        expected = go_on(model(**first))
        answers = [model(**first) for _ in range(2)]
    for chosen, answer in zip((PRUNES, KEEPS_ALL), answers, strict=True):
        with prune(model, chosen):
            torch.testing.assert_close(go_on(answer), expected, **EXACT)
