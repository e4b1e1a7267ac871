"""``engine=vllm``: tower, projector and step run here, and a vLLM is handed the tokens that are left."""

import base64
import json
import logging
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from io import BytesIO
from typing import Any

import httpx2
import torch
from torch import Tensor

from multimodal import FlowpruneError, PruningConfig
from multimodal.serving.handover import hand_over
from multimodal.serving.vllm_images import vllm_image
from pipelines.model import OpenedModel
from pipelines.prompts import build_inputs
from pipelines.serving.chat import ChatRequest, ImagePart
from pipelines.serving.job import Job, Visual
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusalError

log = logging.getLogger("flowprune.serve")


class VllmEngine:
    """Forwards requests, their images as ready embeddings.

    Args:
        opened: the model, whose language model is not used.
        configs: by name; one step before the language model.
        url: of the vLLM.
        metrics: of the endpoint.
        name: of the model, to clients.
        upstream_name: of the model, to that vLLM.
        timeout: seconds of a request, at most.
    """

    def __init__(
        self,
        opened: OpenedModel,
        configs: Mapping[str, PruningConfig],
        url: str,
        metrics: Metrics,
        name: str,
        upstream_name: str,
        timeout: float,
    ) -> None:
        self._opened, self._configs, self._url, self._metrics = opened, configs, url, metrics
        self._name, self._upstream_name = name, upstream_name
        self._client = httpx2.AsyncClient(
            base_url=url, timeout=timeout, limits=httpx2.Limits(max_connections=None), trust_env=False
        )

    def check(self, request: ChatRequest) -> None:
        """vLLM itself says what it cannot do."""

    def key(self, job: Job) -> Hashable:
        return job.pruning

    def run(self, jobs: Sequence[Job]) -> None:
        """Encode the images of jobs, and take the step."""
        if jobs[0].pruning is None or not any(job.images for job in jobs):
            for job in jobs:
                job.say(None)
            return
        config = self._configs[jobs[0].pruning]
        shown = [job for job in jobs if job.images]
        with self._metrics.timed("processor"):
            inputs = build_inputs(self._opened, [job.sample for job in shown])
        handed = hand_over(self._opened.model, config, inputs)
        self._metrics.took("tower", handed.tower_seconds)
        self._metrics.took("step", handed.step_seconds)
        geometry = self._opened.modules.geometry
        for job, images in zip(shown, handed.rows, strict=True):
            tokens, left = (
                sum(each) for each in zip(*((i.visual_tokens, len(i.features)) for i in images), strict=True)
            )
            job.visual = Visual(tokens, (left,), left / tokens)
            job.say([_encoded(vllm_image(image, geometry)) for image in images])
        for job in jobs:
            if not job.images:
                job.say(None)

    async def whole(self, job: Job) -> dict[str, Any]:
        body = await self._body(job)
        try:
            with self._metrics.timed("upstream"):
                response = await self._client.post("/v1/chat/completions", json=body)
        except httpx2.HTTPError as error:
            raise self._lost(error) from error
        if response.status_code != 200:
            raise self._said(response.status_code, response.content)
        answer = response.json()
        return answer | {"model": self._name, "usage": self._usage(job, answer.get("usage") or {})}

    async def chunks(self, job: Job) -> AsyncIterator[dict[str, Any]]:
        body = await self._body(job) | {"stream_options": {"include_usage": True}}
        try:
            with self._metrics.timed("upstream"):
                async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                    if response.status_code != 200:
                        raise self._said(response.status_code, await response.aread())
                    async for line in response.aiter_lines():
                        kind, _, data = line.partition(": ")
                        if kind == "data" and data != "[DONE]" and (chunk := self._read_chunk(job, data)) is not None:
                            yield chunk
        except httpx2.HTTPError as error:
            raise self._lost(error) from error

    def _read_chunk(self, job: Job, data: str) -> dict[str, Any] | None:
        """A part of the answer as the client is to read it; None for one that it has not asked for."""
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise self._said(500, data.encode())
        if usage := chunk.get("usage"):
            chunk["usage"] = self._usage(job, usage)
        if not chunk["choices"] and not job.request.with_usage:
            return None
        return chunk | {"model": self._name}

    async def healthy(self) -> bool:
        try:
            return (await self._client.get("/health", timeout=5)).status_code == 200
        except httpx2.HTTPError:
            return False

    async def close(self) -> None:
        await self._client.aclose()

    async def _body(self, job: Job) -> dict[str, Any]:
        """The request as vLLM is to read it."""
        embeddings = await job.heard()
        request = job.request
        body = request.model_dump(mode="json", exclude_unset=True, exclude={"pruning", "messages", "model"})
        images = iter(embeddings or [_as_url(data) for data in job.images])
        messages = []
        for message in request.messages:
            own = message.model_dump(mode="json", exclude_unset=True)
            if isinstance(message.content, list):
                own["content"] = [
                    next(images) if isinstance(part, ImagePart) else part.model_dump(mode="json", exclude_unset=True)
                    for part in message.content
                ]
            messages.append(own)
        return body | {"model": self._upstream_name, "messages": messages}

    def _usage(self, job: Job, usage: Mapping[str, Any]) -> dict[str, Any]:
        job.prompt_tokens = usage.get("prompt_tokens", 0)
        return job.visual.usage(job.prompt_tokens, usage.get("completion_tokens") or 0)

    def _lost(self, error: Exception) -> RefusalError:
        if isinstance(error, httpx2.TimeoutException):
            return RefusalError(504, "The vLLM behind this endpoint did not answer in time: try again.")
        log.error("the vLLM at %s is lost: %s", self._url, type(error).__name__)
        return RefusalError(503, "The vLLM behind this endpoint does not answer: try again in a minute.")

    def _said(self, status: int, body: bytes) -> RefusalError:
        """What vLLM refused, in its own words; its failures without."""
        if status >= 500:
            return RefusalError(502, f"The vLLM behind this endpoint failed ({status}): its log says why.")
        try:
            said = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"vLLM refuses the request ({status})."
        return RefusalError(status, said)


def served_name(url: str) -> str:
    """What a vLLM calls its model.

    Raises:
        FlowpruneError: none answers there.
    """
    try:
        response = httpx2.get(f"{url}/v1/models", timeout=10, trust_env=False).raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, IndexError) as error:
        reason = type(error).__name__
        raise FlowpruneError(f"No vLLM answers at {url} ({reason}): start it, or set engine.url.") from error


def _encoded(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """An image's tensors as a part of a message; one alone is named by the part itself."""
    written = {}
    for name, tensor in tensors.items():
        buffer = BytesIO()
        torch.save(tensor, buffer)
        written[name] = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_embeds", "image_embeds": written if len(written) > 1 else written["image_embeds"]}


def _as_url(data: bytes) -> dict[str, Any]:
    """An image as it came; nothing is fetched there."""
    url = "data:application/octet-stream;base64," + base64.b64encode(data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}
