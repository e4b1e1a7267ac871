"""``engine=transformers``: the pruned model answers in this process, requests of one config in one batch."""

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from multimodal import PruningConfig, Recordings, prune
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs, shown_layouts
from pipelines.serving.answer import Answer
from pipelines.serving.chat import ChatRequest, Reply
from pipelines.serving.job import Job, Visual
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusalError


class TransformersEngine:
    """Answers with :meth:`generate` of a stock model, inside a ``prune`` block.

    Args:
        opened: the model.
        configs: by name.
        max_tokens: of an answer, where the request does not say.
        metrics: of the endpoint.
        name: of the model, to clients.
        recordings: by which it reads; None: none.
    """

    def __init__(
        self,
        opened: OpenedModel,
        configs: Mapping[str, PruningConfig],
        max_tokens: int,
        metrics: Metrics,
        name: str,
        recordings: Recordings | None = None,
    ) -> None:
        self._opened, self._configs, self._max_tokens, self._metrics = opened, configs, max_tokens, metrics
        self._name, self._recordings = name, recordings
        ends = opened.model.generation_config.eos_token_id
        self._ends = [] if ends is None else ends if isinstance(ends, list) else [ends]

    def check(self, request: ChatRequest) -> None:
        if request.unknown:
            raise RefusalError(
                400, f"engine=transformers knows no {request.unknown[0]!r}: leave it out.", request.unknown[0]
            )

    def key(self, job: Job) -> Hashable:
        asked = job.request
        alone = None if asked.seed is None else id(job)  # a seed is of all that is drawn in a batch
        return job.pruning, asked.temperature, asked.top_p, alone

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job]) -> None:
        model: Any = self._opened.model
        with self._metrics.timed("processor"):
            inputs = build_inputs(self._opened, [job.sample for job in jobs])
        lengths = inputs["attention_mask"].sum(1).tolist()
        limits = self._limits(jobs, lengths)
        answers = [
            Answer(self._opened.processor.tokenizer, self._ends, job.request.stops, limit)
            for job, limit in zip(jobs, limits, strict=True)
        ]
        config = None if jobs[0].pruning is None else self._configs[jobs[0].pruning]
        if (seed := jobs[0].request.seed) is not None:
            torch.manual_seed(seed)
        block = nullcontext() if config is None else prune(model, config, recordings=self._recordings)
        with block as pruner, self._metrics.timed("generate"):

            def note() -> None:
                self._note(jobs, inputs, lengths, pruner)

            model.generate(
                **inputs,
                max_new_tokens=max(limits),
                streamer=_Telling(jobs, answers, note),
                stopping_criteria=StoppingCriteriaList([_Ended(jobs, answers)]),
                **_sampling(jobs[0].request),
            )

    def _limits(self, jobs: Sequence[Job], lengths: Sequence[int]) -> list[int]:
        """Tokens of each answer, at most."""
        room = self._opened.modules.geometry.text_config.max_position_embeddings
        found = []
        for job, length in zip(jobs, lengths, strict=True):
            limit = job.request.limit or max(1, min(self._max_tokens, room - length))
            if length + limit > room:
                raise RefusalError(
                    400, f"The prompt has {length} tokens and the answer may have {limit}, and the model reads {room}."
                )
            found.append(limit)
        return found

    def _note(self, jobs: Sequence[Job], inputs: Mapping[str, Any], lengths: Sequence[int], pruner: Any) -> None:
        """Keep with each job what was pruned of it."""
        if pruner is not None and (report := pruner.report):
            for job, length, entry in zip(jobs, lengths, report, strict=True):
                left = tuple(len(kept) for kept in entry.kept)
                job.visual = Visual(entry.visual_tokens, left, entry.retention)
                first = left[0] if pruner.config.schedule[0].layer == 0 else entry.visual_tokens
                job.prompt_tokens = length - entry.visual_tokens + first
            return
        layouts = iter(shown_layouts(self._opened.modules.geometry, inputs))
        for job, length in zip(jobs, lengths, strict=True):
            own = [next(layouts) for _ in job.sample.pictures]
            job.visual, job.prompt_tokens = Visual(sum(each.visual_tokens for each in own)), length

    async def whole(self, job: Job) -> dict[str, Any]:
        texts = []
        while not isinstance(said := await job.heard(), Answer):
            texts.append(said)
        return Reply(self._name).whole("".join(texts), said.finish_reason or "stop", _usage(job, said))

    async def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        reply = Reply(self._name)
        said = await job.heard()
        yield reply.chunk({"role": "assistant", "content": ""})
        while not isinstance(said, Answer):
            yield reply.chunk({"content": said})
            said = await job.heard()
        yield reply.chunk({}, said.finish_reason)
        if job.request.with_usage:
            yield reply.usage_chunk(_usage(job, said))

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None:
        """It holds nothing but the model."""


def _usage(job: Job, answer: Answer) -> dict[str, Any]:
    return job.visual.usage(job.prompt_tokens, answer.tokens)


def _sampling(request: ChatRequest) -> dict[str, Any]:
    """Arguments of generate(); the model's own generation config where a request does not say."""
    if request.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    given = {"temperature": request.temperature, "top_p": request.top_p}
    given = {name: value for name, value in given.items() if value is not None}
    return given | {"do_sample": True} if given else {}


class _Telling(BaseStreamer):
    """Hands every row's new text to its job."""

    def __init__(self, jobs: Sequence[Job], answers: Sequence[Answer], note: Any) -> None:
        self._jobs, self._answers, self._note = jobs, answers, note
        self._prompt_is_read = False

    def put(self, value: Tensor) -> None:
        if not self._prompt_is_read:  # generate() begins with the prompt's own tokens
            self._prompt_is_read = True
            return
        if self._note is not None:
            self._note()
            self._note = None
        for job, answer, token in zip(self._jobs, self._answers, value.view(-1).tolist(), strict=True):
            if answer.finish_reason is not None:
                continue
            if text := answer.add(token):
                job.say(text)
            if answer.finish_reason is not None:
                job.say(answer)

    def end(self) -> None:
        """Every answer has said so itself."""


class _Ended(StoppingCriteria):
    """Which rows are done, or have nobody who waits for them."""

    def __init__(self, jobs: Sequence[Job], answers: Sequence[Answer]) -> None:
        self._jobs, self._answers = jobs, answers

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = [
            job.gone or answer.finish_reason is not None for job, answer in zip(self._jobs, self._answers, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)
