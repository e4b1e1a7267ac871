"""Answers over HTTP are those of generate() in a prune block, whichever engine and however many clients."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from endpoints import ROOT, data_url, png

from multimodal.plan import kept_count
from pipelines.prompts import build_inputs
from pipelines.serving.app import UNPRUNED

CLIENTS, REQUESTS = 16, 64


@pytest.mark.parametrize("pruning", ["tenth", "inner", UNPRUNED])
def test_the_answer_is_that_of_generate(alone, shown, expected, pruning):
    for sample, answer in list(zip(shown, expected[pruning], strict=True))[:6]:
        completion = alone.ask(sample, pruning)
        assert completion.choices[0].message.content.strip() == answer
        assert completion.choices[0].finish_reason == "stop" and completion.model == "tiny"


def test_usage_tells_visual_tokens_before_and_after(alone, shown, opened, configs):
    inputs = build_inputs(opened, shown[:1])
    visual, prompt = (
        int((inputs["input_ids"] == opened.model.config.image_token_id).sum()),
        inputs["input_ids"].shape[1],
    )
    layout = opened.modules.geometry.layouts(inputs)[0]
    for name in ("tenth", "inner"):
        left, counts = visual, []
        for step in configs[name].schedule:
            left = kept_count(layout, step.keep_ratio, left)
            counts.append(left)
        usage = alone.ask(shown[0], name).usage
        details = usage.prompt_tokens_details
        assert (details.visual_tokens, details.visual_tokens_left) == (visual, counts)
        assert usage.prompt_tokens == prompt - visual + counts[0]
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert details.retention == pytest.approx((2 * counts[0] + 4 * counts[1]) / (6 * visual), abs=1e-5)
    unpruned = alone.ask(shown[0], UNPRUNED).usage
    assert unpruned.prompt_tokens == prompt and unpruned.prompt_tokens_details.visual_tokens_left == []


@pytest.mark.parametrize("endpoint", ["alone", "behind"])
def test_a_stream_says_the_same(endpoint, shown, expected, request):
    endpoint = request.getfixturevalue(endpoint)
    chunks = list(endpoint.ask(shown[0], "tenth", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == expected["tenth"][0]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.model_dump() == endpoint.ask(shown[0], "tenth").usage.model_dump()
    without = list(endpoint.ask(shown[0], "tenth", stream=True))
    assert all(chunk.usage is None for chunk in without) and len(without) == len(chunks) - 1


@pytest.mark.parametrize("endpoint", ["alone", "behind", "recorded"])
def test_many_clients_get_their_own_answers(endpoint, shown, expected, request):
    endpoint = request.getfixturevalue(endpoint)

    def ask(number: int) -> bool:
        pruning = ("tenth", UNPRUNED)[number % 5 == 0]
        at = number % len(shown)
        answer = endpoint.ask(shown[at], pruning).choices[0].message.content
        return answer.strip() == expected[pruning][at]

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(pool.map(ask, range(REQUESTS)))


def test_an_engine_reads_as_many_tokens_as_planned(behind, stand_in, shown, opened):
    inputs = build_inputs(opened, shown[:1])
    [layout] = opened.modules.geometry.layouts(inputs)
    planned = inputs["input_ids"].shape[1] - layout.visual_tokens + kept_count(layout, 0.1, layout.visual_tokens)
    usage = behind.ask(shown[0], "tenth").usage
    assert stand_in.prompt_tokens[-1] == usage.prompt_tokens == planned
    assert usage.prompt_tokens_details.visual_tokens == layout.visual_tokens


def test_several_turns_and_several_images(alone, behind, shown):
    """Both engines read a longer conversation alike; the tiny model has learnt none."""
    messages = [
        {"role": "system", "content": "Answer with one word."},
        {"role": "user", "content": [*_image(data_url(png(shown[0]))), {"type": "text", "text": shown[0].question}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [*_image(data_url(png(shown[1]))), {"type": "text", "text": shown[1].question}]},
    ]
    found = [
        each.client().chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=6, extra_body={"pruning": "tenth"}
        )
        for each in (alone, behind)
    ]
    first, second = (each.choices[0].message.content.strip() for each in found)
    assert first == second and found[0].usage.prompt_tokens == found[1].usage.prompt_tokens
    assert found[0].usage.prompt_tokens_details.visual_tokens == 512


def test_the_documented_client_runs(alone, shown, expected, tmp_path, monkeypatch, capsys):
    [code] = re.findall(r"```py\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("scene.png").write_bytes(png(shown[0]))
    code = code.replace("http://127.0.0.1:8000", alone.url).replace("What colour is the circle?", shown[0].question)
    exec(code, {})
    answer, tokens = capsys.readouterr().out.split()[:2]
    assert answer == expected["tenth"][0] and tokens == str(alone.ask(shown[0], "tenth").usage.prompt_tokens)


def test_an_image_that_only_serves_needs_no_optuna_or_mlflow():
    blocked = ("optuna", "mlflow", "datasets", "matplotlib", "scipy", "sqlalchemy")
    code = f"import sys; sys.modules |= dict.fromkeys({blocked}); import pipelines.__main__, pipelines.stages.serve"
    code += "; from pipelines.console import quieten_libraries; quieten_libraries()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def _image(url: str) -> list[dict]:
    return [{"type": "image_url", "image_url": {"url": url}}]
