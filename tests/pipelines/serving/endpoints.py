"""Endpoints on free ports, in this process, and what their clients send."""

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import openai
import uvicorn
from omegaconf import OmegaConf

from pipelines.data import Sample
from pipelines.serving.app import Endpoint
from pipelines.serving.engine import Engine
from pipelines.serving.metrics import Metrics
from pipelines.settings import ServeSettings

ROOT = Path(__file__).parents[3]
SERVE = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/config.yaml").serve)
TINY = OmegaConf.to_container(OmegaConf.load(ROOT / "conf/model/tiny.yaml"))
VFLOWOPT = {"name": "vflowopt", "query_threshold": 1.0, "entropy_weight": 0.0, "recycling_cell": 4.0}
SHORT = 8  # tokens of an answer


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(sample: Sample, number: int = 0) -> bytes:
    buffer = BytesIO()
    sample.pictures[number].shown().save(buffer, "PNG")
    return buffer.getvalue()


def about(question: str, *urls: str) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


@cache
def client_of(url: str, key: str) -> openai.OpenAI:
    """One for all threads: each holds megabytes of certificates."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


@dataclass
class Served:
    """An endpoint that answers at an address."""

    url: str
    endpoint: Endpoint
    metrics: Metrics

    def client(self, key: str = "x") -> openai.OpenAI:
        return client_of(self.url, key)

    def ask(self, sample: Sample, pruning: str, **more) -> openai.types.chat.ChatCompletion:
        messages = about(sample.question, *(data_url(png(sample, each)) for each in range(len(sample.pictures))))
        given = {"temperature": 0, "max_tokens": SHORT, "extra_body": {"pruning": pruning}} | more
        return self.client().chat.completions.create(model="tiny", messages=messages, **given)


@contextmanager
def on_a_port(app, port: int = 0) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def served(
    make_engine: Callable[[Metrics], Engine], names: Sequence[str], key: str | None = None, **settings
) -> Iterator[Served]:
    metrics = Metrics()
    checked = ServeSettings.model_validate(SERVE | settings)
    endpoint = Endpoint("tiny", list(names), make_engine(metrics), checked, metrics, key)
    with on_a_port(endpoint.app()) as url:
        yield Served(url, endpoint, metrics)
