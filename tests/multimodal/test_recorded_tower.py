"""The vision tower by recordings, against the same tower run as it is. On a CPU a replay runs the function again."""

import threading
import warnings
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import (
    AttentionSinks,
    ClassAttention,
    ContextRelevance,
    GlobalAttention,
    PatchEntropy,
    ReceivedAttention,
    VisionEvidence,
    VisionFeatures,
    VisionKeys,
    VisionRequest,
    VisionValues,
)
from multimodal.families import modules_of
from multimodal.recording.recordings import Recordings
from multimodal.recording.unwaiting import unwaiting
from multimodal.runtime.hooks import Hook
from multimodal.runtime.tower import tower_pruning
from multimodal.runtime.watch import watch_vision
from multimodal.testing.contracts import families
from multimodal.testing.oracles import MEAN, STD, tiny
from multimodal.testing.tiny_models import FAMILIES, build, sample
from multimodal.versions import WINDOWS_APART

REQUESTS: tuple[VisionRequest, ...] = (
    ReceivedAttention(layer=-1),
    ContextRelevance(layer=-1, threshold=1.5),
    VisionFeatures(layer=-1),
    PatchEntropy(),
)
GRIDS = {"glm4v", "glm46v", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"}  # where they can be handed over
OTHERS = {
    "idefics3": "waits for the device",
    "smolvlm": "waits for the device",
    "llava_pixtral": "not given all images at once, or reads images of several sizes",
    "mistral3": "not given all images at once, or reads images of several sizes",
    "video_llama_3": "not given all images at once",
}
PIXELS = ("pixel_values", "image_sizes", "image_grid_thw", "image_merge_sizes", "pixel_attention_mask")


def encoded(
    model: PreTrainedModel, inputs: dict, recordings: Recordings | None, requests: tuple = REQUESTS
) -> tuple[Any, list[VisionEvidence]]:
    """What the model makes of some images, and the evidence of their views."""
    found: list[VisionEvidence] = []
    with watch_vision(
        modules_of(model), requests, (MEAN, STD), lambda *seen: found.extend(seen[-1]), recordings=recordings
    ):
        output = model.model.get_image_features(**{name: inputs[name] for name in PIXELS if name in inputs})
    return output.pooler_output, found


def assert_same(ours: tuple[Any, list[VisionEvidence]], theirs: tuple[Any, list[VisionEvidence]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=0, rtol=0)
    for own, other in zip(ours[1], theirs[1], strict=True):
        assert own.views == other.views
        torch.testing.assert_close(own.tensors(), other.tensors(), atol=0, rtol=0)


def assert_declined(recordings: Recordings, reason: str, run: Any) -> Any:
    with pytest.warns(UserWarning, match=f"Not recorded, read the eager way: .*{reason}"):
        output = run()
    assert not len(recordings)
    return output


@families
def test_images_of_one_shape_share_a_recording(name: str) -> None:
    model, recordings = tiny(name), Recordings()
    samples = [sample(model, images=2, seed=seed) for seed in range(3)]
    expected = [encoded(model, inputs, None) for inputs in samples]
    reason = OTHERS.get(name, None if WINDOWS_APART or name not in GRIDS else "waits for the device")
    if reason is not None:
        assert_declined(recordings, reason, lambda: assert_same(encoded(model, samples[0], recordings), expected[0]))
        assert_same(encoded(model, samples[1], recordings), expected[1])
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [encoded(model, inputs, recordings) for inputs in samples]
    assert len(recordings) == 1
    assert recordings.bytes > 0
    for ours, theirs in zip(found, expected, strict=True):  # also the first: what has left is not written to again
        assert_same(ours, theirs)
    encoded(model, samples[0], recordings, REQUESTS[:1])
    assert len(recordings) == 2  # of other evidence


@pytest.mark.parametrize("method", [{"name": "flowcut"}, {"name": "ipcv", "depth": 0.4, "keep": 0.5}], ids=str)
def test_a_tower_that_patches_leave_is_recorded_with_their_score(method: dict) -> None:
    model, recordings = tiny("llava_clip"), Recordings(insist=True)
    chosen = PruningConfig(method=method, schedule=[{"layer": 0, "keep_ratio": 0.4}])
    found: dict[bool, list] = {False: [], True: []}
    for recorded in found:
        for seed in range(2):
            inputs = sample(model, images=2, seed=seed)
            with prune(model, chosen, recordings=recordings if recorded else None) as pruner:
                features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
                model(**inputs)
            found[recorded].append((list(features), [entry.kept for entry in pruner.report]))
    assert len(recordings)
    torch.testing.assert_close(found[True], found[False], atol=0, rtol=0)


def test_an_encoding_that_fails_leaves_no_scores_for_the_next() -> None:
    model = tiny("llava_clip")
    chosen = PruningConfig(method={"name": "flowcut"}, schedule=[{"layer": 0, "keep_ratio": 0.4}])
    one, two = sample(model, images=1), sample(model, images=2)
    projector = model.model.multi_modal_projector
    with prune(model, chosen) as pruner:
        model(**one)
        expected = pruner.report[0].kept
        failing = projector.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**two)
        failing.remove()
        model(**one)
        assert all(map(torch.equal, pruner.report[0].kept, expected))


def test_a_tower_that_waits_is_tried_once() -> None:
    """Not for every shape and every block again."""
    model, recordings, runs = build("smolvlm"), Recordings(), []
    samples = [sample(model, images=number, seed=number) for number in (1, 2)]
    assert_declined(recordings, "waits for the device", lambda: encoded(model, samples[0], recordings))
    handle = modules_of(model).vision_layer(-1).register_forward_hook(Hook(lambda *_: runs.append(1)))
    for inputs in samples:
        assert_same(encoded(model, inputs, recordings), encoded(model, inputs, None))
    handle.remove()
    assert len(runs) == 4


def test_a_recording_that_takes_too_much_is_tried_again_with_more_room() -> None:
    model, recordings, runs = build("llava_clip"), Recordings(), []
    inputs, recordings.limit_mib = sample(model), 1e-3
    assert_declined(recordings, "MiB, more than limit_mib=0.001: raise it", lambda: encoded(model, inputs, recordings))
    handle = modules_of(model).vision_layer(-1).register_forward_hook(Hook(lambda *_: runs.append(1)))
    encoded(model, inputs, recordings)
    assert len(runs) == 1
    recordings.limit_mib = 1
    encoded(model, inputs, recordings)
    assert len(recordings) == 1
    handle.remove()


def foreign_hook(model: PreTrainedModel) -> Any:
    return modules_of(model).vision_layer(-2).register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "around", "reason"),
    [
        (lambda model: model.train(), nullcontext, "training mode: call model.eval"),
        (lambda model: model, torch.enable_grad, "gradients are on: call the model inside"),
        (foreign_hook, nullcontext, "hooks of others run inside the vision tower"),
        (lambda model: model, lambda: torch.autocast("cpu"), "autocast is on: load the model in the dtype"),
    ],
)
def test_what_cannot_be_recorded_is_run_as_it_is_with_one_reason(change: Any, around: Any, reason: str) -> None:
    model, recordings = build("llava_clip"), Recordings()
    inputs = sample(model)
    change(model)

    def run() -> Any:
        with around():
            return encoded(model, inputs, recordings)

    assert_declined(recordings, reason, run)
    with pytest.raises(FlowpruneError, match=reason), around():
        encoded(model, inputs, Recordings(insist=True))


def test_a_hook_that_comes_later_is_run() -> None:
    model, recordings, ran = build("llava_clip"), Recordings(), []
    pixels = sample(model)["pixel_values"]
    with watch_vision(modules_of(model), REQUESTS, (MEAN, STD), lambda *_: None, recordings=recordings):
        model.model.get_image_features(pixels)
        assert len(recordings) == 1
        handle = modules_of(model).vision_layer(-2).register_forward_hook(lambda *_: ran.append(1))
        with pytest.warns(UserWarning, match="hooks of others"):
            model.model.get_image_features(pixels)
        assert ran == [1]
        handle.remove()
        model.model.get_image_features(pixels)
    assert ran == [1]


@pytest.mark.parametrize("name", ["llava_clip", "qwen2_5_vl"])
def test_offloaded_weights_are_left_to_accelerate(name: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build(name)
    inputs = sample(model)
    expected = encoded(model, inputs, None)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert_same(assert_declined(rec := Recordings(), "offloaded", lambda: encoded(model, inputs, rec)), expected)


def test_a_recording_serves_threads_and_inference_mode() -> None:
    model, recordings = build("llava_siglip"), Recordings()
    samples = [sample(model, seed=seed) for seed in range(4)]
    expected = [encoded(model, inputs, None) for inputs in samples]
    with torch.inference_mode():
        assert_same(encoded(model, samples[0], recordings), expected[0])
    assert_same(encoded(model, samples[1], recordings), expected[1])
    found: list[Any] = [None] * len(samples)
    start = threading.Barrier(len(samples))

    def run(number: int) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(3):
                found[number] = model.model.get_image_features(samples[number]["pixel_values"]).pooler_output

    with watch_vision(modules_of(model), REQUESTS, (MEAN, STD), lambda *_: None, recordings=recordings):
        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(samples))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recordings) == 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=0, rtol=0)


EVERYTHING = (
    *(ContextRelevance(-1, 1.5, sinks=sinks) for sinks in ("kept", "masked", "calibrated")),
    ContextRelevance(0.5, 1.0, 30.0),
    ReceivedAttention(-2, sinks="calibrated"),
    ClassAttention(-1),
    GlobalAttention(-1, heads="joined"),
    AttentionSinks(-1),
    VisionKeys(-1, heads="mean"),
    VisionValues(-1),
    VisionFeatures(0.5),
    PatchEntropy(softmax=True),
)


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "uniform") for name in FAMILIES if name not in OTHERS]
    + [("llava_clip", "flowcut"), ("llava_clip", "ipcv")],
)
def test_nothing_of_a_recording_waits_or_comes_from_the_host(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that computes nothing and so cannot be read."""
    if name in GRIDS and not WINDOWS_APART:
        pytest.skip("this transformers reads the grids inside the tower")
    model = build(name)
    modules, inputs = modules_of(model), sample(model, images=2)
    tower, layouts, given = modules.vision_tower, modules.geometry.layouts(inputs), []
    noting = tower.register_forward_pre_hook(lambda _, *own: given.append(own), with_kwargs=True)
    model.model.get_image_features(**{name: inputs[name] for name in PIXELS if name in inputs})
    noting.remove()
    model.to("meta")
    monkeypatch.setattr(type(modules.geometry), "layouts", lambda *_: layouts)
    monkeypatch.setattr(model.model, "get_image_features", lambda *args, **kwargs: tower(*args, **kwargs))
    for reason in ("tower_reason", "parts_reason"):  # which know this device as that of offloaded weights
        monkeypatch.setattr(f"multimodal.recording.tower.{reason}", lambda *_: None)
    args, kwargs = tree_map_only(Tensor, lambda leaf: leaf.to("meta"), given[0])
    chosen = PruningConfig(method={"name": method}, schedule=[{"layer": 0, "keep_ratio": 0.4}])
    requests = [*chosen.vision_requests, *(EVERYTHING if name == "llava_clip" else REQUESTS)]
    found, inside = [], tower_pruning(modules, chosen)
    for recordings in (None, Recordings(insist=True)):  # in what runs the eager way, too
        with ExitStack() as stack:
            if inside is not None:
                requests = chosen.vision_requests
                inside.attach(stack)
            seen = (MEAN, STD), lambda *seen: found.extend(seen[-1]), inside, recordings
            stack.enter_context(watch_vision(modules, requests, *seen))
            for _ in range(2):
                model.model.get_image_features(*args, **kwargs)
    assert len(recordings) == 1
    assert len(found) >= 4
    assert all(tensor.is_meta for own in found for tensor in own.tensors().values())


WAITING = {
    "item": lambda x: x.sum().item(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "set": lambda x: x.__setitem__(x > 0, x[:1]),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "branch": lambda x: 1 if (x > 0).any() else 0,
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_for_the_device_is_found(name: str) -> None:
    x = torch.arange(3.0)
    with pytest.raises(RuntimeError, match="waits for the device"), unwaiting(x.device):
        WAITING[name](x)


def test_what_is_copied_from_the_host_is_found() -> None:
    device = torch.device("meta")  # stands for another one
    with unwaiting(device):
        torch.zeros(3, device=device).repeat_interleave(2, 0).add_(1)
    with pytest.raises(RuntimeError, match="copies between cpu and meta"), unwaiting(device):
        torch.zeros(3).to(device)
    with pytest.raises(RuntimeError, match="copies numbers of the host"), unwaiting(torch.device("cpu")):
        torch.tensor([1, 2])
