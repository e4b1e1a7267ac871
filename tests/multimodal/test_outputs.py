"""Hidden states and attention weights that are asked for, and embeddings that are resized, over every family."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import EXACT, KEEPS_ALL, PRUNES, called, families, rotated
from multimodal.testing.oracles import run_hidden, tiny
from multimodal.testing.tiny_models import WORDS, build, sample


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


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


@pytest.mark.parametrize(("name", "where"), rotated(["argument", "config"]))
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
