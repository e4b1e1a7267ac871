"""The HTTP side: OpenAI's routes, the key, limits, and clients that leave."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import ValidationError

from pipelines.data import Sample
from pipelines.data.sample import Turn
from pipelines.serving.chat import UNPRUNED, ChatRequest, ImagePart
from pipelines.serving.engine import Engine
from pipelines.serving.images import MIB, Images
from pipelines.serving.job import Job
from pipelines.serving.metrics import Metrics
from pipelines.serving.refusals import RefusalError, malformed
from pipelines.serving.worker import Worker
from pipelines.settings import ServeSettings

log = logging.getLogger("flowprune.serve")
T = TypeVar("T")


class Endpoint:
    """Answers requests about one model.

    Args:
        name: of the model.
        configs: names of its pruning configs.
        engine: that answers.
        settings: of the stage.
        metrics: that the engine counts in, too.
        key: that clients must show; None: none.
    """

    def __init__(
        self,
        name: str,
        configs: list[str],
        engine: Engine,
        settings: ServeSettings,
        metrics: Metrics,
        key: str | None,
    ) -> None:
        self._name, self._configs, self._engine, self._settings = name, configs, engine, settings
        self._metrics, self._key = metrics, key
        self._default = settings.default or next(iter(configs), UNPRUNED)
        self._images = Images(settings)
        self._being_read = 0
        self._worker = Worker(engine.run, engine.key, settings.queue, settings.batch_size, metrics)

    def app(self) -> FastAPI:
        """The ASGI application."""

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self._worker.close)
            await self._images.close()
            await self._engine.close()

        app = FastAPI(title="flowprune", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.models)
        app.add_api_route("/health", self.health)
        app.add_api_route("/metrics", self.metrics)
        app.middleware("http")(self._guarded)
        return app

    async def models(self) -> dict[str, Any]:
        """The model, and the configs that a request can name."""
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "flowprune"}
        return {"object": "list", "data": [model | {"pruning": [*self._configs, UNPRUNED], "default": self._default}]}

    async def health(self) -> Response:
        """200 where requests can be answered."""
        return Response(status_code=200 if await self._engine.healthy() else 503)

    async def metrics(self) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self._metrics.shown(), media_type="text/plain; version=0.0.4")

    async def chat(self, http: Request) -> Response:
        """Answer a chat request."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.timeout):
                job = await self._read(http)
                self._worker.submit(job)
                return await (self._streamed if job.request.stream else self._whole)(http, job, began)
        except RefusalError as error:
            return _refused(error)
        except TimeoutError:
            seconds = f"{self._settings.timeout:g} seconds"
            return _refused(RefusalError(504, f"No answer within {seconds}: try again, or ask for less."))

    async def _whole(self, http: Request, job: Job, began: float) -> Response:
        """The answer at once."""
        try:
            return JSONResponse(await _unless_left(http, self._engine.whole(job)))
        finally:
            self._end(job, began)

    async def _streamed(self, http: Request, job: Job, began: float) -> Response:
        """The answer in parts; what goes wrong before the first has a status of its own."""
        chunks = self._engine.chunks(job)
        try:
            first = await _unless_left(http, anext(chunks))
        except BaseException:
            self._end(job, began)
            raise

        async def lines() -> AsyncIterator[str]:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    yield _line(first)
                    async for chunk in chunks:
                        yield _line(chunk)
                    yield "data: [DONE]\n\n"
            except RefusalError as refusal:
                yield _line(refusal.body)
            except TimeoutError:
                yield _line(RefusalError(504, f"No whole answer within {self._settings.timeout:g} seconds.").body)
            finally:
                self._end(job, began)

        return StreamingResponse(lines(), media_type="text/event-stream")

    def _end(self, job: Job, began: float) -> None:
        job.gone = True
        left = job.visual.left[0] if job.visual.left else job.visual.tokens
        self._metrics.visual.labels("unpruned").inc(job.visual.tokens)
        self._metrics.visual.labels("left").inc(left)
        log.info(
            "images=%d visual_tokens=%d left=%d prompt_tokens=%d seconds=%.3f",
            len(job.images),
            job.visual.tokens,
            left,
            job.prompt_tokens,
            time.monotonic() - began,
        )

    async def _read(self, http: Request) -> Job:
        """A request with its images; as many are read at once as may wait."""
        if self._being_read >= self._settings.queue:
            raise RefusalError(429, f"{self._settings.queue} requests are being read: try again in a moment.")
        self._being_read += 1
        try:
            return await self._job(await self._body(http))
        finally:
            self._being_read -= 1

    async def _body(self, http: Request) -> bytes:
        most = self._settings.request_mib * MIB
        data = bytearray()
        async for chunk in http.stream():
            data += chunk
            if len(data) > most:
                raise RefusalError(413, f"The request has more than {self._settings.request_mib:g} MiB: send less.")
        return bytes(data)

    async def _job(self, body: bytes) -> Job:
        try:
            request = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise malformed(error) from error
        if request.model not in (None, self._name):
            raise RefusalError(404, f"There is no model {request.model!r} here: ask for {self._name!r}.", "model")
        name = request.pruning or self._default
        if name not in (*self._configs, UNPRUNED):
            known = ", ".join([*self._configs, UNPRUNED])
            raise RefusalError(400, f"There is no pruning config {name!r} here: choose one of {known}.", "pruning")
        self._engine.check(request)
        turns, images = [], []
        with self._metrics.timed("images"):
            for message in request.messages:
                parts: list[Any] = []
                for part in message.parts:
                    if isinstance(part, ImagePart):
                        images.append(await self._images.read(part.image_url.url))
                        parts.append(await asyncio.to_thread(self._images.decoded, images[-1]))
                    else:
                        parts.append(part.text)
                turns.append(Turn("system" if message.role == "developer" else message.role, tuple(parts)))
        sample = Sample(tuple(turns), where="The request")
        return Job(request, sample, images, None if name == UNPRUNED else name)

    async def _guarded(self, http: Request, answer: Any) -> Response:
        """Ask for the key, and count."""
        given = http.headers.get("authorization", "").removeprefix("Bearer ")
        open_to_all = http.url.path == "/health"
        if self._key is not None and not open_to_all and not secrets.compare_digest(given.encode(), self._key.encode()):
            response: Response = _refused(
                RefusalError(401, "The API key is wrong or missing: send it as a bearer token.")
            )
        else:
            response = await answer(http)
        self._metrics.requests.labels(str(response.status_code)).inc()
        return response


def _refused(refusal: RefusalError) -> Response:
    return JSONResponse(refusal.body, refusal.status)


def _line(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


async def _unless_left(http: Request, answer: Awaitable[T]) -> T:
    """What comes, unless the client leaves before.

    Raises:
        RefusalError: it left.
    """
    comes, leaves = asyncio.ensure_future(answer), asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait({comes, leaves}, return_when=asyncio.FIRST_COMPLETED)
        if not comes.done():
            raise RefusalError(499, "The client left.")
        return comes.result()
    finally:
        comes.cancel()
        leaves.cancel()


async def _left(http: Request) -> None:
    """Wait until the client leaves."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
