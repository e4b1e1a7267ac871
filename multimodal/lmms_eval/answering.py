"""A model, pruned where a config says so, that answers conversations."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, NamedTuple

import torch

from multimodal.config import PruningConfig
from multimodal.lmms_eval.arguments import Arguments
from multimodal.lmms_eval.conversation import Conversation, build_inputs
from multimodal.lmms_eval.generation import generate_options, until
from multimodal.lmms_eval.tally import Tally
from multimodal.loading import load_model
from multimodal.runtime import prune
from multimodal.runtime.pruner import Pruner


class Answer(NamedTuple):
    """What the model says, and of how many tokens."""

    text: str
    tokens: int


class Answering:
    """Loads the model and checks that the config fits it.

    Args:
        arguments: of the command.
        device: in place of the arguments'; None: theirs.

    Raises:
        FlowpruneError: there is no such model or config, or they do not fit each other.
    """

    def __init__(self, arguments: Arguments, device: str | None = None) -> None:
        self.config = None if arguments.config is None else PruningConfig.from_pretrained(arguments.config)
        model, self._processor = load_model(
            arguments.pretrained,
            revision=arguments.revision,
            dtype=arguments.dtype,
            device=device or arguments.device,
            device_map=arguments.device_map,
            quantization=arguments.quantization,
            adapter=arguments.adapter,
            attention=arguments.attention,
            trust_remote_code=arguments.trust_remote_code,
        )
        self._model: Any = model
        self.device = model.device
        self.tally = Tally()
        with self._pruned():  # refuses a config of another model before data is read
            pass

    def _pruned(self) -> AbstractContextManager[Pruner | None]:
        return nullcontext() if self.config is None else prune(self._model, self.config)

    def answer(self, talks: Sequence[Conversation], asked: Mapping[str, Any]) -> list[Answer]:
        """What the model says to each: those with images, with videos and of text alone in batches of their own.

        Args:
            talks: conversations that end with a question.
            asked: a task's ``generation_kwargs``.

        Raises:
            FlowpruneError: the model's processor refuses one.
        """

        def kinds(number: int) -> tuple[bool, bool]:
            return talks[number].kinds

        found: dict[int, Answer] = {}
        for _, alike in groupby(sorted(range(len(talks)), key=kinds), kinds):
            numbers = list(alike)
            found |= zip(numbers, self._generate([talks[number] for number in numbers], asked), strict=True)
        return [found[number] for number in range(len(talks))]

    @torch.inference_mode()
    def _generate(self, talks: Sequence[Conversation], asked: Mapping[str, Any]) -> list[Answer]:
        inputs = build_inputs(self._processor, talks).to(self.device, dtype=self._model.dtype)
        began = time.perf_counter()
        with self._pruned() as pruner:
            output = self._model.generate(**inputs, **generate_options(asked))
            reports = pruner.report if pruner else []
        new = output[:, inputs["input_ids"].shape[1] :].cpu()  # waits for the device
        seconds = time.perf_counter() - began
        beams = len(reports) // len(talks) or 1
        pad = self._processor.tokenizer.pad_token_id
        texts = self._processor.batch_decode(new, skip_special_tokens=True)
        tokens = [int((row != pad).sum()) for row in new]
        self.tally.see(talks, tokens, reports[::beams], seconds)
        return [Answer(until(text, asked.get("until")), count) for text, count in zip(texts, tokens, strict=True)]
