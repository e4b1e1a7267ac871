"""What cannot be answered gets one sentence in OpenAI's form, and nobody else notices."""

import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import httpx2
import openai
import pytest
from endpoints import SHORT, about, data_url, on_a_port, png, served

from multimodal import FlowpruneError
from pipelines.serving.transformers_engine import TransformersEngine
from pipelines.serving.vllm_engine import VllmEngine
from pipelines.serving.vllm_process import VllmProcess
from pipelines.settings import VllmSettings
from pipelines.stages.serve import engine_arguments, vllm_model

CHAT = "/v1/chat/completions"
SMALL = {"max_tokens": 4, "temperature": 0}


def huge_png(side: int) -> bytes:
    """A few bytes that claim to be a very large picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def refusal(url: str, **body) -> tuple[int, str, str | None]:
    response = httpx2.post(url + CHAT, json=SMALL | body, timeout=60)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == response.status_code
    assert error["message"].count("\n") == 0
    return response.status_code, error["message"], error["param"]


BAD_IMAGES = {
    "no picture": (data_url(b"not a picture"), 400, "cannot be read"),
    "cut off": (None, 400, "cannot be read"),
    "not base64": ("data:image/png;base64,%%%", 400, "not base64"),
    "no comma": ("data:image/png;base64", 400, "comma"),
    "too many pixels": (data_url(huge_png(20_000)), 413, "more than 50 million pixels"),
    "many pixels": (data_url(huge_png(8_000)), 413, "more than 50 million pixels"),
    "too many bytes": (data_url(b"\0" * 3 * 2**20), 413, "more than 2 MiB"),
    "ftp": ("ftp://here/a.png", 400, "must begin with"),
    "a path": ("/etc/passwd", 400, "must begin with"),
    "a host": ("http://169.254.169.254/latest", 403, "serve.image_hosts"),
    "a file": ("file:///etc/passwd", 403, "not in the folder|reads no files"),
    "a file outside": ("file:///tmp/../etc/passwd", 403, "not in the folder|reads no files"),
}


@pytest.fixture(scope="module")
def bounded(opened, configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with served(
        lambda metrics: TransformersEngine(opened, configs, 8, metrics, "tiny"),
        configs,
        image_mib=2,
        request_mib=5,
        image_folder=str(folder),
        image_hosts=["127.0.0.1"],
    ) as endpoint:
        yield endpoint, folder


@pytest.mark.parametrize(("url", "status", "words"), BAD_IMAGES.values(), ids=list(BAD_IMAGES))
def test_an_image_that_cannot_be_read(url, status, words, bounded, shown):
    url = url or data_url(png(shown[0])[:-400])
    code, sentence, parameter = refusal(bounded[0].url, messages=about("What?", url))
    assert code == status and any(each in sentence for each in words.split("|")), sentence
    assert parameter == "messages.content.image_url"


def test_files_below_the_folder_and_allowed_hosts_are_read(bounded, shown, expected):
    endpoint, folder = bounded
    (folder / "a scene.png").write_bytes(png(shown[0]))
    (folder / "away.png").symlink_to("/etc/passwd")
    fetched = []

    class Hosted(BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png(shown[1]) if self.path == "/scene.png" else b"\0" * 3 * 2**20)

        def log_message(self, *args):
            pass

    host = HTTPServer(("127.0.0.1", 0), Hosted)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    there = f"http://127.0.0.1:{host.server_port}"
    for at, url in enumerate([(folder / "a scene.png").as_uri(), f"{there}/scene.png"]):
        body = SMALL | {"max_tokens": SHORT, "messages": about(shown[at].question, url), "pruning": "tenth"}
        answer = httpx2.post(endpoint.url + CHAT, json=body, timeout=60).json()
        assert answer["choices"][0]["message"]["content"].strip() == expected["tenth"][at]
    assert refusal(endpoint.url, messages=about("?", f"{there}/moved"))[:2] == (
        400,
        "127.0.0.1 answers 302 to the request for the image.",
    )
    assert refusal(endpoint.url, messages=about("?", f"{there}/large"))[0] == 413
    assert refusal(endpoint.url, messages=about("?", (folder / "away.png").as_uri()))[0] == 403
    assert refusal(endpoint.url, messages=about("?", (folder / "none.png").as_uri()))[0] == 404
    host.shutdown()


BAD_BODIES = {
    "no messages": ({}, 400, "messages"),
    "empty": ({"messages": []}, 400, "messages"),
    "another model": ({"messages": about("?"), "model": "gpt"}, 404, "ask for 'tiny'"),
    "another config": ({"messages": about("?"), "pruning": "half"}, 400, "tenth, inner, none"),
    "two answers": ({"messages": about("?"), "n": 2}, 400, "n "),
    "too hot": ({"messages": about("?"), "temperature": 9}, 400, "temperature"),
    "tools": ({"messages": about("?"), "tools": [{"type": "function"}]}, 400, "knows no 'tools'"),
    "too long": ({"messages": about("?"), "max_tokens": 5000}, 400, "the model reads 1024"),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, "input_audio"),
}


@pytest.mark.parametrize(("body", "status", "words"), BAD_BODIES.values(), ids=list(BAD_BODIES))
def test_a_request_that_cannot_be_answered(body, status, words, bounded):
    code, sentence, _ = refusal(bounded[0].url, **body)
    assert code == status and words in sentence, sentence


def test_what_is_no_json_or_too_long_is_refused(bounded):
    url = bounded[0].url
    assert httpx2.post(url + CHAT, content=b"{", timeout=60).status_code == 400
    assert httpx2.post(url + CHAT, content=b" " * 6 * 2**20, timeout=60).status_code == 413


def test_one_prompt_that_fits_not_spoils_nobody_elses(bounded, shown, expected):
    """They are computed in one batch, of which one row cannot be."""
    endpoint, found = bounded[0], {}

    def ask(number: int) -> None:
        limit = 5000 if number == 2 else SHORT
        body = {"messages": about(shown[number].question, data_url(png(shown[number]))), "pruning": "tenth"}
        found[number] = httpx2.post(endpoint.url + CHAT, json=SMALL | body | {"max_tokens": limit}, timeout=60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, response in found.items():
        if number == 2:
            assert response.status_code == 400
        else:
            assert response.json()["choices"][0]["message"]["content"].strip() == expected["tenth"][number]


def test_a_key_is_asked_for(opened, configs, shown):
    make = lambda metrics: TransformersEngine(opened, configs, 8, metrics, "tiny")  # noqa: E731
    with served(make, configs, key="right") as endpoint:
        with pytest.raises(openai.AuthenticationError, match="bearer token"):
            endpoint.client("wrong").models.list()
        [model] = endpoint.client("right").models.list()
        assert model.id == "tiny" and model.pruning == ["tenth", "inner", "none"] and model.default == "tenth"
        assert httpx2.get(endpoint.url + "/health").status_code == 200
        assert httpx2.get(endpoint.url + "/metrics").status_code == 401


class Slow(TransformersEngine):
    """Computes when it is let."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.let, self.ran = threading.Event(), []

    def run(self, jobs) -> None:
        self.let.wait(30)
        self.ran.append(len(jobs))
        super().run(jobs)


@pytest.fixture
def slow(opened, configs):
    engines = []

    def make(metrics):
        engines.append(Slow(opened, configs, 8, metrics, "tiny"))
        return engines[0]

    with served(make, configs, queue=2, timeout=3) as endpoint:
        yield endpoint, engines[0]
        engines[0].let.set()


def test_a_full_queue_refuses_at_once_and_late_answers_are_given_up(slow, shown):
    endpoint, engine = slow
    codes = []

    def ask() -> None:
        codes.append(refusal(endpoint.url, messages=about("What?"), pruning="tenth")[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join()
    assert sorted(codes) == [429, 504, 504, 504]  # one computes, two wait
    engine.let.set()
    assert endpoint.ask(shown[0], "tenth").choices
    assert engine.ran == [1, 1]  # nobody waited for the two


def test_no_more_requests_are_read_at_once_than_may_wait(slow):
    endpoint, _ = slow
    host, port = endpoint.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: here\r\ncontent-length: 99\r\n\r\n".encode()
    slow_ones = [socket.create_connection((host, int(port))) for _ in range(2)]
    for connection in slow_ones:
        connection.sendall(head)  # and nothing more
    time.sleep(0.3)
    assert refusal(endpoint.url, messages=about("What?"))[:2] == (
        429,
        "2 requests are being read: try again in a moment.",
    )
    for connection in slow_ones:
        connection.close()
    time.sleep(0.3)
    assert refusal(endpoint.url, messages=about("What?"), n=2)[0] == 400  # it is read again


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_not_computed_for(slow, shown, stream):
    endpoint, engine = slow
    host, port = endpoint.url.removeprefix("http://").split(":")
    body = httpx2.Request("POST", endpoint.url + CHAT, json=SMALL | {"messages": about("What?"), "stream": stream})
    head = "\r\n".join(f"{name}: {value}" for name, value in body.headers.items())

    def leave() -> None:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n\r\n".encode() + body.read())
            time.sleep(0.3)

    leave()  # is being computed
    leave()  # waits
    time.sleep(0.3)
    engine.let.set()
    assert endpoint.ask(shown[0], "tenth").choices
    assert engine.ran == [1, 1]


def test_a_model_that_fails_is_said_and_goes_on(opened, configs, shown, caplog):
    class Failing(TransformersEngine):
        def run(self, jobs) -> None:
            if any("spoilt" in job.sample.question for job in jobs):
                raise RuntimeError("secret: the prompt")
            super().run(jobs)

    with served(lambda metrics: Failing(opened, configs, 8, metrics, "tiny"), configs) as endpoint:
        code, sentence, _ = refusal(endpoint.url, messages=about("spoilt"))
        assert code == 500 and "RuntimeError" in sentence and "secret" not in sentence + caplog.text
        assert endpoint.ask(shown[0], "tenth").choices


def test_a_vllm_that_refuses_fails_dies_and_comes_back(opened, configs, stand_in, shown, expected):
    own = {"tenth": configs["tenth"]}
    with on_a_port(stand_in.app()) as url:
        port = int(url.rpartition(":")[2])
    with served(lambda metrics: VllmEngine(opened, own, url, metrics, "tiny", "there", 5), own) as endpoint:
        for stream in (False, True):
            code, sentence, _ = refusal(endpoint.url, messages=about("What?", data_url(png(shown[0]))), stream=stream)
            assert code == 503 and "does not answer" in sentence
        assert httpx2.get(endpoint.url + "/health").status_code == 503
        with on_a_port(stand_in.app(), port):
            answer = endpoint.ask(shown[0], "tenth")
            assert answer.choices[0].message.content.strip() == expected["tenth"][0]
            text = [{"role": "user", "content": "refuse"}]
            assert refusal(endpoint.url, messages=text)[:2] == (400, "max_tokens is too large.")
            stand_in.fails = 500
            try:
                assert refusal(endpoint.url, messages=text)[0] == 502
            finally:
                stand_in.fails = None


def test_a_config_that_ready_embeddings_cannot_hold_is_refused_at_the_start(opened, configs):
    with pytest.raises(FlowpruneError, match="nearest config"):
        engine_arguments(opened, configs)
    assert "FlowpruneLlavaForConditionalGeneration" in engine_arguments(opened, {"a": configs["tenth"]})[-1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine=vllm"], "one of engine.url"),
        (["engine=vllm", "engine.python=python3"], "run stages=[export] serving=vllm target=vllm first"),
        (["engine=vllm", "engine.url=http://127.0.0.1:9"], "No vLLM answers at http://127.0.0.1:9"),
        (["serve.default=half"], "serve.default is 'half'"),
        (["serve.configs.none=tenth"], "choose another name"),
        (["serve.configs.tenth=nowhere"], "nowhere"),
        (["serve.host=203.0.113.1"], "cannot be listened on"),
    ],
)
def test_a_stage_that_cannot_serve_says_why(overrides, words, flowprune, configs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs["tenth"].save_pretrained("tenth")
    code, printed = flowprune("serve", "model=tiny", "serve.configs.tenth=tenth", *overrides, without=["model.path"])
    assert code == 2 and words in " ".join(printed.split()), printed


def test_what_export_left_for_a_vllm_is_what_it_loads(tmp_path):
    exported = SimpleNamespace(for_vllm=tmp_path / "vllm.json", settings=None)
    exported.settings = SimpleNamespace(model=SimpleNamespace(path="tiny"))
    engine = VllmSettings(name="vllm", url=None, python="python3", model=None, arguments=[], start_seconds=1)
    exported.for_vllm.write_text('{"arguments": {"model": "/there/vllm-model"}}')
    assert vllm_model(exported, engine) == "/there/vllm-model"
    assert vllm_model(exported, engine.model_copy(update={"model": "/mine"})) == "/mine"


def test_a_vllm_that_does_not_start_is_said_with_its_own_reason(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho '(Worker pid=1) ERROR 11-27 [x.py:9] ValueError: no memory.'; exit 3\n")
    fake.chmod(0o755)
    process = VllmProcess(str(fake), "model", "tiny", [], tmp_path / "vllm.log")
    with pytest.raises(FlowpruneError, match=r"ended with code 3 \(ValueError: no memory\): see .*vllm.log"):
        process.wait(20)
    process.close()
