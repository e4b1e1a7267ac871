"""lmms-eval's model: what tasks ask is what the model is asked, and what is reported is what was met."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import qwen3_vl
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

import multimodal.lmms_eval.clip
from multimodal import FlowpruneError, PruningConfig, PruningStep, load_model, prune
from multimodal.lmms_eval.answering import Answering
from multimodal.lmms_eval.arguments import Arguments, from_command_line
from multimodal.lmms_eval.conversation import Conversation, read_conversation
from multimodal.lmms_eval.generation import generate_options, until
from multimodal.lmms_eval.rounds import rounds
from multimodal.lmms_eval.tally import Tally
from pipelines.data.scenes import scenes

ROOT = Path(__file__).parents[2]
MET = (3 * 51 + 3 * 5) / (6 * 256)  # 51 of 256 tokens in three layers, 5 in three
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, whose name looks like a number."""
    schedule = [PruningStep(layer=0, keep_ratio=0.2), PruningStep(layer=3, keep_ratio=0.1)]
    budget = {"measure": "retention", "asked": 0.11, "met": MET}
    folder = tmp_path_factory.mktemp("configs") / "0.10"
    method = {"name": "vflowopt", "query_threshold": 1.0}
    PruningConfig(method=method, schedule=schedule, budget=budget).save_pretrained(folder)
    return folder


def asking(*shown: Image.Image | str, question: str) -> list[dict]:
    content = [{"type": "image", "image": image} for image in shown]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


class Plain:
    """The shipped model in a plain loop, one conversation at a time."""

    def __init__(self, config: Path | None) -> None:
        self.model, self.processor = load_model("tiny", device="cpu")
        self.config = None if config is None else PruningConfig.from_pretrained(config)

    def __call__(self, images: list[Image.Image], question: str) -> str:
        messages = [
            {"role": "user", "content": [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]}
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(images=images or None, text=text, return_tensors="pt")
        if self.config is None:
            output = self.model.generate(**inputs, **SHORT, do_sample=False)
        else:
            with prune(self.model, self.config):
                output = self.model.generate(**inputs, **SHORT, do_sample=False)
        return self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# what a command says


def test_arguments_are_what_was_typed(config: Path) -> None:
    own = from_command_line(
        f"pretrained=tiny, config={config},batch_size=4,", {"batch_size": "1", "max_batch_size": None, "device": "cpu"}
    )
    assert own == Arguments(pretrained="tiny", config=str(config), batch_size=4, device="cpu")
    assert from_command_line("pretrained=007,config=1e3", {}).model_dump(include={"pretrained", "config"}) == {
        "pretrained": "007",
        "config": "1e3",
    }


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "model_args.pretrained is missing: add it."),
        ("tiny", {}, "model_args holds 'tiny', which has no value: write name=value, with commas between."),
        ("pretrained=tiny,cfg=x", {}, "model_args.cfg is not a known key: remove it or check its spelling."),
        ("pretrained=tiny", {"batch_size": "auto"}, "model_args.batch_size is 'auto': input should be a valid integer"),
        ("pretrained=tiny,batch_size=0", {}, "model_args.batch_size is '0': input should be greater than"),
    ],
)
def test_mistakes_are_one_sentence(text: str, options: dict, message: str) -> None:
    with pytest.raises(FlowpruneError) as raised:
        from_command_line(text, options)
    assert str(raised.value).startswith(message)


def test_a_config_of_another_model_is_refused_at_the_start(config: Path, tmp_path: Path) -> None:
    other = {"id": "x", "architecture": "Other", "layers": 6}
    PruningConfig(**json.loads((config / "pruning.json").read_text()) | {"model": other}).save_pretrained(tmp_path)
    with pytest.raises(FlowpruneError, match="architecture is Other, but the model is a LlavaForCond"):
        Answering(Arguments(pretrained="tiny", config=str(tmp_path)))


# what a task says

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {"max_new_tokens": 1024} | GREEDY),
        ({"max_new_tokens": 5, "temperature": 0, "do_sample": True, "top_p": 1.0}, {"max_new_tokens": 5} | GREEDY),
        ({"max_new_tokens": 5, "temperature": 0.7, "do_sample": False}, {"max_new_tokens": 5} | GREEDY),
        ({"max_new_tokens": 5, "temperature": 0.7}, {"max_new_tokens": 5, "temperature": 0.7, "do_sample": True}),
        ({"max_new_tokens": 5, "do_sample": True}, {"max_new_tokens": 5, "do_sample": True}),
        (
            {"max_new_tokens": 5, "num_beams": 2, "until": ["x"], "image_aspect_ratio": "pad", "top_p": None},
            {"max_new_tokens": 5, "num_beams": 2} | GREEDY,
        ),
    ],
)
def test_generation_is_asked_for_in_transformers_words(asked: dict, options: dict) -> None:
    assert generate_options(asked) == options


def test_an_answer_ends_where_the_task_says() -> None:
    assert until(" red\n\nQ: x", ["Q:", "\n\n"]) == until(" red\n\nQ: x", "\n\n") == "red"
    assert until(" red\n\nblue", None) == until("red\n\nblue ", []) == until("red\n\nblue", [""]) == "red\n\nblue"


def test_rounds_go_on_until_the_task_has_enough() -> None:
    seen = []

    def ask(document: str, round_idx=None, previous_output=None, previous_round_info=None):
        seen.append((document, round_idx, previous_output, previous_round_info))
        if round_idx is None:
            return "first"
        last = round_idx == 2
        return (None if last else "second", last, ["kept", *previous_output] if last else None, round_idx * 10)

    talk = rounds(ask, "it")
    assert [next(talk), talk.send("a")] == ["first", "second"]
    with pytest.raises(StopIteration) as ended:
        talk.send("b")
    assert ended.value.value == ["kept", "a", "b"]
    assert seen == [("it", None, None, None), ("it", 1, ["a"], None), ("it", 2, ["a", "b"], 10)]
    one = rounds(lambda document, **_: "again", "it")
    assert next(one) == "again"
    with pytest.raises(StopIteration) as ended:
        one.send("a")
    assert ended.value.value == ["a"]


# what is shown


def test_what_is_shown_keeps_its_place_and_becomes_rgb(tmp_path: Path) -> None:
    Image.new("LA", (5, 4)).save(tmp_path / "grey.png")
    red = Image.new("RGB", (3, 2), "red")
    messages = asking(red, str(tmp_path / "grey.png"), question="which?")
    talk = read_conversation([{"role": "system", "content": [{"type": "text", "text": "be brief"}]}, *messages], 4)
    assert [(image.mode, image.size) for image in talk.images] == [("RGB", (3, 2)), ("RGB", (5, 4))]
    assert talk.kinds == (True, False)
    assert [message["content"] for message in talk.messages] == [
        [{"type": "text", "text": "be brief"}],
        [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which?"}],
    ]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "audio", "audio": "x.wav"}, "t, document 3 has audio, which flowprune does not take"),
        ({"type": "image", "image": "gone.png"}, "t, document 3: its image cannot be read"),
        ({"type": "video", "video": "gone.mp4"}, "t, document 3: its video cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_named(part: dict, message: str) -> None:
    with pytest.raises(FlowpruneError, match=message):
        read_conversation([{"role": "user", "content": [part]}], 4, where="t, document 3")


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds of video in place of a decoder's: frame n is grey as n."""

    def load_video(named: str, sample_indices_fn):
        assert named == "ten.mp4"
        metadata = SimpleNamespace(total_num_frames=100, fps=10.0, frames_indices=None)
        metadata.frames_indices = sample_indices_fn(metadata=metadata)
        return np.stack([np.full((40, 40, 3), number, np.uint8) for number in metadata.frames_indices]), metadata

    monkeypatch.setattr(multimodal.lmms_eval.clip, "load_video", load_video)


@pytest.mark.parametrize(
    ("part", "frames", "fps"),
    [
        ({"video": "ten.mp4"}, [0, 33, 66, 99], 10 / 33),
        ({"video": "ten.mp4", "video_start": 2, "video_end": 5}, [20, 30, 40, 50], 1.0),
        ({"video": {"path": "ten.mp4", "video_start": 9.8}}, [98, 99], 10.0),
        ({"video": {"url": "ten.mp4", "video_end": 0}}, [0], 10.0),
    ],
)
def test_frames_lie_evenly_where_the_task_says(decoder, part: dict, frames: list[int], fps: float) -> None:
    clip = multimodal.lmms_eval.clip.read_clip({"type": "video", **part}, 4)
    assert clip.frames[:, 0, 0, 0].tolist() == frames
    assert clip.fps == pytest.approx(fps)
    assert clip.metadata["total_num_frames"] == len(frames)


def test_a_model_of_videos_answers_videos_and_images_in_one_batch(decoder, tmp_path: Path) -> None:
    qwen3_vl(tmp_path)
    method = {"name": "divprune"}
    PruningConfig(method=method, schedule=[PruningStep(layer=0, keep_ratio=0.5)]).save_pretrained(tmp_path)
    answering = Answering(Arguments(pretrained=str(tmp_path), config=str(tmp_path), device="cpu"))
    picture = Image.new("RGB", (40, 40), "red")
    video = [{"type": "video", "video": "ten.mp4"}, {"type": "text", "text": "picture"}]
    talks = [
        read_conversation([{"role": "user", "content": video}], 4),
        read_conversation(asking(picture, question="picture"), 4),
        read_conversation(asking(question="picture"), 4),
    ]
    together = answering.answer(talks, SHORT)
    assert answering.tally.prompts == 2 and answering.tally.visual_tokens == 25 + 4 / 2 * 25  # of four frames
    assert answering.tally.retention == pytest.approx(13 / 25 + 25 / 50)
    assert together == [answering.answer([talk], SHORT)[0] for talk in talks]


def test_a_model_of_images_refuses_videos(decoder) -> None:
    video = read_conversation([{"role": "user", "content": [{"type": "video", "video": "ten.mp4"}]}], 4, where="t, 1")
    with pytest.raises(FlowpruneError, match="t, 1 has a video, and this model takes images only"):
        Answering(Arguments(pretrained="tiny")).answer([video], SHORT)


# what is answered, and what was met


def test_answers_are_those_of_a_plain_loop(config: Path) -> None:
    first, second, third = scenes("test", 3)
    asked = [([first.image, third.image], first.question), ([], "hello?"), ([second.image], second.question)]
    talks = [read_conversation(asking(*images, question=question), 4) for images, question in asked]
    for applied in (config, None):
        arguments = Arguments(pretrained="tiny", config=None if applied is None else str(applied), device="cpu")
        answering, plain = Answering(arguments), Plain(applied)
        answers = answering.answer(talks, SHORT)
        assert [answer.text for answer in answers] == [plain(*each) for each in asked]
        figures = answering.tally.figures(answering.config)
        if applied is None:
            assert figures == {"retention": 1.0, "kv_share": 1.0}
        else:
            assert figures["retention"] == pytest.approx(MET) and figures["asked_retention"] == 0.11
            assert figures["visual_tokens_unpruned"] == (512 + 256) / 2  # the one without images does not count
            assert MET < figures["kv_share"] < MET + 0.1  # text too


def test_copies_that_keep_processes_in_step_are_not_counted() -> None:
    def seen(*numbers: int) -> Tally:
        tally = Tally()
        talks = [Conversation("it", (), counts=number > 0) for number in numbers]
        reports = [
            SimpleNamespace(visual_tokens=10, retention=number / 10, kv_bytes=number, kv_bytes_unpruned=10)
            for number in numbers
        ]
        tally.see(talks, [2] * len(numbers), reports, 1.5)
        return tally

    total = Tally.total([seen(1, 2), seen(6, 0)])
    assert total == Tally(3, pytest.approx(0.9), 30, 9, 30, 6, 3.0)
    assert seen().figures(None) == {"retention": 1.0, "kv_share": 1.0}


# the harness itself

TASK = """task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/scenes.parquet}}}}
test_split: test
output_type: {output_type}
doc_to_visual: !function tasks.{shown}
doc_to_text: !function tasks.asked
doc_to_target: answer
process_results: !function tasks.graded
generation_kwargs: {{max_new_tokens: 8}}
metric_list: [{{metric: score, aggregation: mean, higher_is_better: true}}]
"""
TASKS = """
def one(document):
    return document["images"][:1]


def all(document):
    return document["images"]


def asked(document, round_idx=None, previous_output=None, **_):
    if round_idx is None:
        return document["question"]
    return document["images"][1:], document["other_question"], round_idx == 2, previous_output, None


def graded(document, answers):
    flat = answers[0] if isinstance(answers[0], list) else answers
    return {"score": float(flat[0] == document["answer"]), "said": flat}
"""


@pytest.fixture(scope="module")
def harness() -> str:
    """A Python that has lmms-eval."""
    own = str(ROOT / ".venv-lmms/bin/python") if (ROOT / ".venv-lmms").exists() else None
    python = os.environ.get("LMMS_EVAL_PYTHON") or own or (sys.executable if find_spec("lmms_eval") else None)
    if python is None:
        pytest.skip("no lmms-eval here: make lmms")
    return python


def run(python: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [python, *arguments], cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False
    )


def test_lmms_eval_finds_what_a_plain_loop_finds(harness: str, config: Path, tmp_path: Path) -> None:
    plain, samples, others = Plain(config), list(scenes("heldout", 24)), list(scenes("test", 24))
    rows = {
        "images": [[sample.image, other.image] for sample, other in zip(samples, others, strict=True)],
        "question": [sample.question for sample in samples],
        "other_question": [other.question for other in others],
        "answer": [sample.answer for sample in samples],
    }
    features = {name: Value("string") for name in rows} | {"images": List(ImageFeature())}
    Dataset.from_dict(rows, Features(features)).to_parquet(tmp_path / "scenes.parquet")
    tasks = {"one_image": ("generate_until", "one"), "images": ("generate_until", "all")}
    tasks |= {"rounds": ("generate_until_multi_round", "one")}
    for name, (kind, shown) in tasks.items():
        text = TASK.format(name=name, folder=tmp_path, output_type=kind, shown=shown)
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "tasks.py").write_text(TASKS)
    done = run(
        harness,
        *("-m", "lmms_eval", "--model", "flowprune"),
        *("--model_args", f"pretrained=tiny,config={config},device=cpu", "--batch_size", "7"),
        *("--tasks", ",".join(tasks), "--include_path", ".", "--output_path", "out", "--log_samples"),
        folder=tmp_path,
    )
    found = list((tmp_path / "out").rglob("*_results.json"))
    assert found, done.stdout + done.stderr  # its exit code is 0 in any case
    results = json.loads(found[0].read_text())
    said = {
        name: {row["doc_id"]: row["said"] for row in map(json.loads, file.read_text().splitlines())}
        for name in tasks
        for file in (tmp_path / "out").rglob(f"*_samples_{name}.jsonl")
    }
    ones = [plain([sample.image], sample.question) for sample in samples]
    pairs = [plain([s.image, o.image], s.question) for s, o in zip(samples, others, strict=True)]
    seconds = [plain([other.image], other.question) for other in others]
    assert [said["one_image"][number] for number in range(24)] == [[answer] for answer in ones]
    assert [said["images"][number] for number in range(24)] == [[answer] for answer in pairs]
    assert [said["rounds"][number] for number in range(24)] == [list(both) for both in zip(ones, seconds, strict=True)]
    right = sum(answer == sample.answer for answer, sample in zip(ones, samples, strict=True))
    assert results["results"]["one_image"]["score,none"] == results["results"]["rounds"]["score,none"] == right / 24
    assert results["config"]["model_args"] == f"pretrained=tiny,config={config},device=cpu"
    met = results["throughput"]
    assert met["avg_retention"] == pytest.approx(MET) and met["avg_asked_retention"] == 0.11
    assert met["avg_visual_tokens_unpruned"] == (3 * 256 + 512) / 4  # one, two, and one in each of two rounds


def test_a_mistake_ends_lmms_eval_with_one_sentence(harness: str, tmp_path: Path) -> None:
    program = (
        "from lmms_eval.models import get_model; get_model('flowprune').create_from_arg_string('config=gone.json')"
    )
    done = run(harness, "-c", program, folder=tmp_path)
    said = done.stderr.splitlines()
    assert done.returncode == 1 and said[-1] == "error: model_args.pretrained is missing: add it."
    assert not any(line.startswith("Traceback") for line in said)
