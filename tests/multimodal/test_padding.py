"""Rows that are padded, on the left or on the right, over every family."""

import pytest
import torch
from transformers import PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import EXACT, KEEPS_ALL, PRUNES, forced_tokens, padded_on_the_right, rotated
from multimodal.testing.oracles import run_hidden, tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, batch, extended, is_visual, sample


def prompts(model: PreTrainedModel) -> list[dict]:
    """An image, none, an image of another size: rows of three lengths."""
    return [
        sample(model, images=1, text=3, seed=1, size=3),
        sample(model, images=0, text=6, seed=3),
        sample(model, images=1, text=7, seed=4),
    ]


@pytest.mark.parametrize(("name", "side"), rotated(["left", "right"]))
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
