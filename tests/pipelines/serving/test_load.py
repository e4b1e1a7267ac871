"""500 requests from 16 clients: none lost, none with another's answer, memory flat (``pytest -m slow -s``)."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from endpoints import ROOT, SHORT, TINY, Served, served

from multimodal import prune
from multimodal.serving.vllm_arguments import vllm_arguments
from multimodal.serving.vllm_weights import write_readable
from pipelines.data.scenes import scenes
from pipelines.prompts import build_inputs, greedy_answers
from pipelines.serving.front_end import open_front_end
from pipelines.serving.vllm_engine import VllmEngine, served_name
from pipelines.serving.vllm_process import VllmProcess
from pipelines.settings import ModelSettings

pytestmark = pytest.mark.slow
PYTHON = Path(os.environ.get("FLOWPRUNE_VLLM", ROOT / ".vllm/bin/python"))
REQUESTS, CLIENTS, GROWTH = 500, 16, 64  # MiB that the second half may add


@pytest.fixture
def real_vllm(configs, tmp_path) -> Iterator[Served]:
    if not PYTHON.exists():
        pytest.skip("no vLLM here: make vllm")
    write_readable(ROOT / "multimodal/tiny", tmp_path / "model")
    settings = ModelSettings.model_validate(TINY | {"dtype": "float32", "device": "cpu", "revision": "front end"})
    opened, own = open_front_end(settings), {"tenth": configs["tenth"]}
    flags = [*vllm_arguments(opened.model.config), "--enforce-eager", "--dtype", "float32"]
    process = VllmProcess(str(PYTHON), str(tmp_path / "model"), "there", flags, tmp_path / "vllm.log")
    try:
        process.wait(900)
        there = served_name(process.url)
        with served(lambda metrics: VllmEngine(opened, own, process.url, metrics, "tiny", there, 300), own) as endpoint:
            yield endpoint
    finally:
        process.close()


@pytest.mark.parametrize("endpoint", ["alone", "real_vllm"])
def test_load(endpoint, opened, configs, request):
    endpoint = request.getfixturevalue(endpoint)
    samples = list(scenes("test", REQUESTS))
    with prune(opened.model, configs["tenth"]):
        expected = [greedy_answers(opened, build_inputs(opened, [sample]), SHORT)[0] for sample in samples]

    def ask(number: int) -> bool:
        if number % 2:
            chunks = endpoint.ask(samples[number], "tenth", stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            text = endpoint.ask(samples[number], "tenth").choices[0].message.content
        return text.strip() == expected[number]

    right, resident = 0, []
    for half in (range(REQUESTS // 2), range(REQUESTS // 2, REQUESTS)):
        with ThreadPoolExecutor(CLIENTS) as pool:
            right += sum(pool.map(ask, half))
        resident.append(_resident())
    print(f"{right} of {REQUESTS} answers are those of generate(); resident {resident} MiB")
    assert right >= 0.99 * REQUESTS and resident[1] - resident[0] < GROWTH


def _resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
