"""Prompts are put together alike everywhere, and who is refused by a processor is named."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from test_data import data
from transformers import BatchFeature

from multimodal import FlowpruneError
from pipelines.data import Sample, data_digest
from pipelines.data.asking import as_asked
from pipelines.data.sample import Turn
from pipelines.prompts import build_inputs

GREY = Image.new("RGB", (8, 6), "grey")


class Processor:
    """Writes prompts as plain text and remembers how it was called; takes no picture as wide as 300."""

    chat_template = "{{ messages }} {{ enable_thinking }}"

    def __init__(self, bos: str | None = None) -> None:
        self.tokenizer = SimpleNamespace(bos_token=bos)
        self.calls: list[dict] = []

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool, **options: Any) -> str:
        if messages[0]["role"] == "system" and options.get("enable_thinking") is None:
            raise ValueError("System role not supported")
        marks = {"text": lambda part: part["text"], "image": lambda part: "[image]", "video": lambda part: "[video]"}
        turns = [f"{m['role']}:{'|'.join(marks[p['type']](p) for p in m['content'])}" for m in messages]
        return (self.tokenizer.bos_token or "") + " ".join(turns) + (f" {options}" if options else "")

    def __call__(self, **given: Any) -> BatchFeature:
        self.calls.append(given)
        if any(image.width == 300 for images in given.get("images", []) for image in images):
            raise ValueError("absolute aspect ratio must be smaller than 200.")
        return BatchFeature({"input_ids": torch.zeros(len(given["text"]), 1, dtype=torch.long)})


def opened(processor: Processor) -> Any:
    return SimpleNamespace(processor=processor, model=SimpleNamespace(device="cpu", dtype=torch.float32))


def test_a_question_as_users_of_the_model_ask_it() -> None:
    processor = Processor()
    source = data(
        system="Be brief.", prefix="Look:", suffix=" Answer with one word.", template={"enable_thinking": False}
    )
    sample = as_asked(Sample.asking(GREY, "What $colour$?"), source)
    own = Sample((Turn("system", ("Mine.",)), *Sample.asking(GREY, "Q").turns))
    build_inputs(opened(processor), [sample, as_asked(own, source)])
    [call] = processor.calls
    assert call["text"] == [
        "system:Be brief. user:[image]|Look:\nWhat $colour$? Answer with one word. {'enable_thinking': False}",
        "system:Mine. user:[image]|Look:\nQ Answer with one word. {'enable_thinking': False}",
    ]
    assert [len(images) for images in call["images"]] == [1, 1] and "videos" not in call and call["padding"] is True


@pytest.mark.parametrize(
    "change", [{"system": "S"}, {"prefix": "P"}, {"suffix": "S"}, {"template": {"enable_thinking": True}}]
)
def test_what_is_put_around_questions_is_in_the_digest(change: dict) -> None:
    plain = Sample.asking(GREY, "Q")
    assert data_digest([as_asked(plain, data(**change))]) != data_digest([as_asked(plain, data())])
    assert data_digest([as_asked(plain, data())]) == data_digest([Sample.asking(GREY, "Q", "an answer")])


@pytest.mark.parametrize(("bos", "added"), [("<s>", False), (None, None)])
def test_the_first_token_is_written_once(bos: str | None, added: bool | None) -> None:
    processor = Processor(bos)
    build_inputs(opened(processor), [Sample.asking(GREY, "Q")])
    assert processor.calls[0].get("add_special_tokens") is added


def test_who_is_refused_is_named() -> None:
    fine, wide = (Sample.asking(image, "Q", where=f"row {n}") for n, image in enumerate((GREY, GREY.resize((300, 1)))))
    refused = "the model's processor refuses it"
    with pytest.raises(FlowpruneError, match=rf"^row 1: {refused} \(absolute aspect ratio .* 200\): change it or drop"):
        build_inputs(opened(Processor()), [fine, wide, fine])
    with pytest.raises(FlowpruneError, match=rf"^row 0: {refused} \(System role not supported\)"):
        build_inputs(opened(Processor()), [as_asked(fine, data(system="S"))])
    with pytest.raises(FlowpruneError, match=r"data\.template\.thinking is no option of this model's chat template"):
        build_inputs(opened(Processor()), [as_asked(fine, data(template={"thinking": True}))])
    without = Processor()
    without.chat_template = None
    with pytest.raises(FlowpruneError, match=r"^The model has no chat template, .*: put the chat_template.jinja"):
        build_inputs(opened(without), [fine])
    with pytest.raises(ValueError, match=r"data\.template\.tokenize is no option of a chat template"):
        data(template={"tokenize": True})
