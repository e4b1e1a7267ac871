"""Recorded prefills and decoding steps: the eager path's answers, one recording a bucket, and nothing to wait for.

On the CPU a recording is the same computation on the same fixed tensors, run again; that a GPU could record it is shown
on tensors that have a GPU's device but no data.
"""

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, StaticCache

from multimodal import FlowpruneError, PruningConfig, Recordings, constants, prune
from multimodal.families import modules_of
from multimodal.methods import Method
from multimodal.recording import path, prompts, tokens
from multimodal.recording.bucket import Bucket
from multimodal.recording.prompts import Reader, RecordedPrompt
from multimodal.recording.tokens import RecordedToken
from multimodal.recording.unwaiting import unwaiting
from multimodal.runtime import Pruner
from multimodal.testing.contracts import EXACT, families, fitting, generated, mixed_samples, no_gradients  # noqa: F401
from multimodal.testing.oracles import config, tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, batch, extended, sample

UNRECORDED = {  # families that need what recordings cannot give
    "aya_vision": "sliding windows",
    "cohere2_vision": "sliding windows",
    "gemma3": "sliding windows",
    "paligemma2": "sliding windows",
}
METHODS = sorted(name for name, kind in Method.registry.items() if kind.__module__.startswith("multimodal."))
STEPS = ((0, 0.5), (2, 0.5))
MULTIPLE = 32


def held() -> Recordings:
    return Recordings(text_multiple=MULTIPLE)


def prompts_held(recordings: Recordings) -> list[Bucket]:
    """Buckets of recorded prompts; the vision tower has recordings of its own."""
    return [key for key in recordings._made if isinstance(key, Bucket)]


def same(ours: Any, theirs: Any) -> None:
    """Two generations of one prompt."""
    assert torch.equal(ours.sequences, theirs.sequences)
    for own, their in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(own, their, **EXACT)


def same_reports(ours: Pruner, theirs: list) -> None:
    for own, their in zip(ours.report, theirs, strict=True):
        assert torch.equal(own.places, their.places)
        for one, other in zip((*own.kept, *own.sizes), (*their.kept, *their.sizes), strict=True):
            assert torch.equal(one, other)
        assert (own.retention, own.kv_bytes) == (their.retention, their.kv_bytes)


def compare(model: PreTrainedModel, chosen: PruningConfig, inputs: dict, recordings: Recordings) -> None:
    """Generate both ways."""
    with prune(model, chosen) as pruner:
        theirs, report = generated(model, inputs), pruner.report
    with prune(model, chosen, recordings=recordings) as pruner:
        same(generated(model, inputs), theirs)
        same_reports(pruner, report)


# the eager path's answers


@families
def test_every_family_answers_as_the_eager_path_does(name: str) -> None:
    model, recordings = tiny(name), held()
    chosen = fitting(model, config(STEPS, recycling_cell=2.5, recycling_weight=0.7))
    one, other = (sample(model, images=1, text=text, seed=1, size=1) for text in (5, 7))
    several = batch(mixed_samples(model))
    if name in UNRECORDED:
        with pytest.warns(UserWarning, match=UNRECORDED[name]):
            compare(model, chosen, one, recordings)
        assert not prompts_held(recordings)
        return
    compare(model, chosen, one, recordings)
    first = len(prompts_held(recordings))
    compare(model, chosen, other, recordings)
    assert len(prompts_held(recordings)) == first == 1  # another text length, the same bucket
    compare(model, chosen, several, recordings)
    assert len(prompts_held(recordings)) == 2
    compare(model, chosen, one, recordings)
    assert len(prompts_held(recordings)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_the_eager_path_does(method: str) -> None:
    kind = Method.registry[method]
    steps = STEPS if kind.first_layer == 0 else ((1, 0.5), (2, 0.5))
    chosen = config(steps, name=method, positions="original")
    model, recordings = tiny("llava_clip"), held()
    for seed in (1, 2):
        inputs = batch([sample(model, images=1, text=4, seed=seed), sample(model, images=2, text=5, seed=seed + 5)])
        compare(model, chosen, inputs, recordings)
    assert len(prompts_held(recordings)) == 1


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_positions_and_backends(positions: str, attention: str) -> None:
    model, recordings = tiny("llava_siglip", attention), held()
    for schedule in (STEPS, ((2, 0.4),)):
        compare(model, config(schedule, positions=positions), batch(mixed_samples(model)), recordings)
    assert len(prompts_held(recordings)) == 2


def test_windows_longer_than_a_prompt_with_its_answer() -> None:
    model, recordings = copy.deepcopy(tiny("gemma3")), Recordings(new_tokens=8)
    model.config.text_config.sliding_window = 200
    for layer in modules_of(model).text_layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 200
    for inputs in (sample(model, images=1), batch(mixed_samples(model)[:2])):
        compare(model, config(STEPS, recycling_cell=2.5), inputs, recordings)
    assert len(prompts_held(recordings)) == 2


def test_videos() -> None:
    model = tiny("qwen2_5_vl")
    compare(model, config(STEPS), sample(model, images=1, videos=1), recordings := held())
    assert len(prompts_held(recordings)) == 1


# one recording, several conversations


def begin(model: PreTrainedModel, inputs: dict) -> Any:
    """Read a prompt; the output holds its cache."""
    return model(**inputs, use_cache=True)


def spoken(model: PreTrainedModel, cache: Any, words: list[int]) -> Tensor:
    """Logits of some words, read one by one ``[1, words, vocabulary]``."""
    return torch.cat([model(input_ids=torch.tensor([[word]]), **{CACHE: cache}).logits for word in words], 1)


@contextmanager
def two_ways(chosen: PruningConfig, recordings: Recordings) -> Iterator[tuple[PreTrainedModel, Any]]:
    """A recorded block, and a way to run a function in an eager one instead."""
    model = tiny("llava_siglip")

    def eagerly(run: Any) -> Any:
        with prune(tiny("llava_siglip", "eager"), chosen):
            return run(tiny("llava_siglip", "eager"))

    with prune(model, chosen, recordings=recordings):
        yield model, eagerly


WORDS = [9, 14, 21, 30]
CHOSEN = config(STEPS, recycling_cell=2.5, recycling_weight=0.7)


def later(model: PreTrainedModel, seed: int = 1) -> dict:
    return sample(model, images=1, text=5, seed=seed, size=1)


def reordered(cache: Any) -> Any:
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_select_indices(torch.tensor([0]))
    return cache


def cropped(cache: Any) -> Any:
    cache.crop(-1)
    return cache


CHANGES = {
    "as it is": lambda cache: cache,
    "rows changed": reordered,
    "cropped": cropped,
    "copied": copy.deepcopy,
    "pickled": lambda cache: pickle.loads(pickle.dumps(cache)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("interrupted", [False, True], ids=["alone", "interrupted"])
def test_a_conversation_goes_on_whatever_is_done_to_its_cache(change: str, interrupted: bool) -> None:
    """Also where another prompt takes the memory of its recording in between."""

    def conversation(model: PreTrainedModel) -> Tensor:
        cache = begin(model, later(model))[CACHE]
        first = spoken(model, cache, WORDS[:2])
        cache = CHANGES[change](cache)
        if interrupted:
            other = begin(model, later(model, seed=2))[CACHE]
            spoken(model, other, WORDS[2:])
        return torch.cat([first, spoken(model, cache, WORDS)], 1)

    with two_ways(CHOSEN, recordings := held()) as (model, eagerly):
        ours = conversation(model)
        torch.testing.assert_close(ours, eagerly(conversation), **EXACT)
    assert len(prompts_held(recordings)) == 1


def test_a_conversation_outlives_its_block() -> None:
    recordings, model = held(), tiny("llava_siglip")
    with prune(model, CHOSEN, recordings=recordings):
        cache = begin(model, later(model))[CACHE]
        spoken(model, cache, WORDS[:1])
    with prune(model, CHOSEN, recordings=recordings):
        begin(model, later(model, seed=2))
        ours = spoken(model, cache, WORDS[1:])
    with prune(model, CHOSEN):
        theirs = spoken(model, begin(model, later(model))[CACHE], WORDS)
    torch.testing.assert_close(ours, theirs[:, 1:], **EXACT)


def test_threads_share_recordings() -> None:
    """All prompts are of one bucket, whose slots go from one to the other in the middle of answers."""

    def answer(model: PreTrainedModel, seed: int) -> Tensor:
        with torch.no_grad():
            return spoken(model, begin(model, later(model, seed=seed))[CACHE], WORDS)

    seeds = [1, 2, 3, 4] * 3
    with two_ways(CHOSEN, recordings := held()) as (model, eagerly):
        expected = {seed: eagerly(lambda own, seed=seed: answer(own, seed)) for seed in set(seeds)}
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda seed: answer(model, seed), seeds))
    for seed, own in zip(seeds, answers, strict=True):
        torch.testing.assert_close(own, expected[seed], **EXACT)
    assert len(prompts_held(recordings)) == 1


def test_a_long_answer_goes_on_without_recordings() -> None:
    def answer(model: PreTrainedModel) -> Tensor:
        return spoken(model, begin(model, later(model))[CACHE], WORDS * 2)

    with two_ways(CHOSEN, Recordings(new_tokens=3)) as (model, eagerly):
        with pytest.warns(UserWarning, match="new_tokens"):
            ours = answer(model)
        torch.testing.assert_close(ours, eagerly(answer), **EXACT)


def test_beams_several_sequences_and_a_second_image() -> None:
    def run(model: PreTrainedModel) -> list[Tensor]:
        inputs, options = later(model), {"max_new_tokens": 4, "do_sample": False}
        beams = model.generate(**inputs, num_beams=3, **options)
        cache = begin(model, inputs)[CACHE]
        more = extended(model, later(model, seed=3), torch.tensor([[9, 10]]))
        mask = torch.ones(1, inputs["input_ids"].shape[1] + more["input_ids"].shape[1], dtype=torch.long)
        second = model(**more | {"attention_mask": mask}, **{CACHE: cache}).logits[:, -1]
        return [beams, second]

    with two_ways(CHOSEN, held()) as (model, eagerly):
        for ours, theirs in zip(run(model), eagerly(run), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


def test_a_static_cache_is_served() -> None:
    model, options = tiny("llava_siglip"), {"max_new_tokens": 4, "do_sample": False}
    inputs = batch(mixed_samples(model)[:2])
    with prune(model, CHOSEN):
        expected = model.generate(**inputs, **options)
        with pytest.raises(FlowpruneError, match="recordings"):
            model.generate(**inputs, **options, cache_implementation="static")
        vars(model).pop("_cache", None)  # older versions keep it, and fail on one that holds nothing
    with prune(model, CHOSEN, recordings=held()):
        for _ in range(2):
            assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), expected)
    stock = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), stock)


def test_a_static_cache_is_given_back_by_a_reset() -> None:
    model = tiny("llava_siglip")
    inputs = later(model)
    cache = StaticCache(config=model.config, max_cache_len=200)
    with prune(model, CHOSEN, recordings=held()):
        model(**inputs, **{CACHE: cache})
        spoken(model, cache, WORDS)
    cache.reset()
    assert type(cache) is StaticCache
    expected = model(**inputs).logits[:, -1]
    torch.testing.assert_close(model(**inputs, **{CACHE: cache}).logits[:, -1], expected, **EXACT)


# memory


def test_memory_is_bounded_and_told() -> None:
    model, recordings = tiny("llava_siglip"), held()
    with prune(model, CHOSEN, recordings=recordings):
        begin(model, later(model))
        one = recordings.bytes
        assert one > 0
        begin(model, batch([later(model), later(model)]))
        assert len(prompts_held(recordings)) == 2 and recordings.bytes > 2 * one * 0.9
        assert f"{len(recordings)} held" in repr(recordings)
        recordings.clear()
        assert not recordings.bytes
    small = Recordings(limit_mib=1, new_tokens=2_000)
    with prune(model, CHOSEN, recordings=small), pytest.warns(UserWarning, match="limit_mib=1"):
        begin(model, later(model))
    assert not prompts_held(small) and len(small)  # the tower keeps its place


def test_what_is_met_once_need_not_be_recorded() -> None:
    model, recordings = tiny("llava_siglip"), Recordings(sightings=2)
    compare(model, CHOSEN, later(model), recordings)
    assert not len(recordings)
    compare(model, CHOSEN, batch([later(model)] * 2), recordings)
    assert not prompts_held(recordings)
    compare(model, CHOSEN, later(model, seed=2), recordings)
    assert len(prompts_held(recordings)) == 1


def test_what_was_used_longest_ago_is_let_go() -> None:
    model, recordings = tiny("llava_siglip"), held()
    rows = [batch([later(model)] * number) for number in (1, 2, 3)]
    with prune(model, CHOSEN, recordings=recordings):
        for inputs in rows[:2]:
            begin(model, inputs)
        recordings.limit_mib = recordings.bytes / (1 << 20) * 1.8
        begin(model, rows[0])
        begin(model, rows[2])
        kept = {bucket.rows for bucket in prompts_held(recordings)}
    assert 3 in kept and 2 not in kept


def test_a_recording_keeps_no_model_alive_that_is_gone() -> None:
    model, recordings = copy.deepcopy(tiny("llava_siglip")), held()
    with prune(model, CHOSEN, recordings=recordings):
        begin(model, later(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# what is not recorded


def test_a_reason_is_told_once_and_refused_where_recordings_insist() -> None:
    model = tiny("llava_siglip")
    handle = model.model.language_model.layers[1].register_forward_hook(lambda *_: None)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            recordings = held()
            for _ in range(2):
                compare(model, CHOSEN, later(model), recordings)
        assert [str(each.message) for each in seen] == [
            "Not recorded, read the eager way: hooks of others run inside the language model: remove them."
        ]
        with (
            pytest.raises(FlowpruneError, match="hooks of others"),
            prune(model, CHOSEN, recordings=Recordings(insist=True)),
        ):
            pass
    finally:
        handle.remove()
    compare(model, CHOSEN, later(model), Recordings(insist=True))


CALLS = {
    "output_hidden_states": "output_hidden_states is asked for",
    "gradients": "gradients are on",
    "training": "training mode",
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_that_want_more_are_read_the_eager_way(call: str) -> None:
    model = tiny("llava_siglip")
    inputs = later(model) | ({"output_hidden_states": True} if call == "output_hidden_states" else {})
    with prune(model, CHOSEN):
        expected = model(**inputs).logits
    try:
        model.train(call == "training").requires_grad_(call == "gradients")
        with (
            torch.set_grad_enabled(call == "gradients"),
            prune(model, CHOSEN, recordings=held()),
            pytest.warns(UserWarning, match=CALLS[call]),
        ):
            torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
    finally:
        model.eval().requires_grad_(False)


@pytest.mark.parametrize("part", ["RecordedPrompt", "RecordedToken"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory left"), RuntimeError("not while capturing")])
def test_what_fails_while_it_is_recorded_is_read_the_eager_way(
    part: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(*_: Any) -> None:
        tried.append(part)
        raise error

    monkeypatch.setattr(path, part, fail)
    model, recordings = tiny("llava_siglip"), held()
    with pytest.warns(UserWarning, match="memory|capturing"):
        compare(model, CHOSEN, later(model), recordings)
    compare(model, CHOSEN, later(model), recordings)
    assert len(tried) == 1 or isinstance(error, torch.OutOfMemoryError)


@pytest.mark.parametrize("name", ["limit_mib", "text_multiple", "new_tokens", "sightings"])
def test_numbers_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(FlowpruneError, match=f"{name} is 0"):
        Recordings(**{name: 0})


# what a GPU could record


class Watched:
    """Stands in for a recording on a GPU: the function runs once, on tensors without data, and nothing may wait."""

    def __init__(self, function: Any, device: torch.device, pool: Any, *given: Any) -> None:
        assert device.type == "cuda"
        function(*given)  # constants are made
        with unwaiting(device):
            self.output = function(*given)
        self.bytes = 0


@pytest.fixture
def without_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors of a GPU, without one."""
    monkeypatch.setattr(prompts, "Recorded", Watched)
    monkeypatch.setattr(tokens, "Recorded", Watched)
    monkeypatch.setattr(prompts, "sendable", lambda numbers, device: torch.from_numpy(numbers))
    constants._made.cache_clear()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(False)
    constants._made.cache_clear()


def record_without_data(name: str, chosen: PruningConfig, mode: FakeTensorMode) -> RecordedToken:
    """Record a batch's prefill and a decoding step of a tiny model whose tensors hold no data."""
    real = tiny(name)
    several = batch(mixed_samples(real))
    seen: list[dict] = []
    text = modules_of(real).text_model
    handle = text.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with prune(real, chosen) as pruner:
        real(**several)
    handle.remove()
    outcome, given = pruner.outcome, seen[0]
    assert outcome is not None
    copied = copy.deepcopy(real)
    with mode, torch.device("cuda"):
        model = copied._apply(lambda tensor: torch.empty_like(tensor, device="cuda"))
        prompt = outcome.prompt
        evidence = {
            kind: [torch.empty_like(each, device="cuda") for each in own] for kind, own in prompt.evidence.items()
        }
        rows, length = prompt.valid.shape
        width = given["inputs_embeds"].shape[-1]
        axes = [rows] if FAMILIES[name].rotary_axes == 1 else [given["position_ids"].shape[0], rows]
        tensors = {
            "embeds": torch.empty(rows, length, width),
            "positions": torch.zeros(*axes, length, dtype=torch.long),
        }
        prompt = type(prompt)(prompt.valid, prompt.images, evidence)
        with prune(model, chosen) as pruner:
            own = pruner.modules
            reader, read = Reader(own.geometry, own.text_model.config, chosen), pruner._read
            bucket = Bucket.of(prompt, MULTIPLE, tensors, ())
            recording = RecordedPrompt(bucket, reader, read, prompt, tensors, room=4)
            token = torch.empty(rows, 1, width), torch.zeros(*axes, 1, dtype=torch.long)
            return RecordedToken(reader, read, recording.slots, *token)


@families
def test_nothing_in_a_recording_waits_for_the_device(name: str, without_data: FakeTensorMode) -> None:
    if name in UNRECORDED or name == "qwen3_vl_moe":  # whose experts ask a driver what the GPU can do
        return
    chosen = fitting(tiny(name), config(STEPS, recycling_cell=2.5, recycling_weight=0.7))
    token = record_without_data(name, chosen, without_data)
    assert token.hidden.shape[1] == 1


@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits_for_the_device(method: str, without_data: FakeTensorMode) -> None:
    steps = STEPS if Method.registry[method].first_layer == 0 else ((1, 0.5), (2, 0.5))
    record_without_data("llava_clip", config(steps, name=method, positions="original"), without_data)
