"""The calibration cache: what is written is read back, wholly or not at all."""

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors import SafetensorError

import search.calibration
from multimodal import FlowpruneError
from multimodal.evidence import (
    ContextRelevance,
    PatchEntropy,
    ReceivedAttention,
    VisionFeatures,
    VisionKeys,
    VisionRequest,
    token_evidence,
)
from multimodal.families import modules_of
from multimodal.testing.oracles import MEAN, STD, tiny
from multimodal.testing.tiny_models import FAMILIES, batch, sample
from search.calibration import OPTIONAL_TENSORS, TENSORS, CalibrationSample, observe_sample, observe_samples

ALL = (
    ContextRelevance(-1, 0.5),
    ContextRelevance(-2, 0.05, 50),
    PatchEntropy(),
    ReceivedAttention(-1),
    VisionKeys(-1),
    VisionFeatures(-2),
)


def observed(name: str = "llava_clip", requests: tuple[VisionRequest, ...] = ALL) -> CalibrationSample:
    model = tiny(name)
    return observe_sample(modules_of(model), sample(model, images=2, size=1), requests, (MEAN, STD))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("requests", [(), ALL], ids=len)
def test_round_trip(name, requests, tmp_path):
    written = observed(name, requests)
    path = tmp_path / "folder" / "00000.safetensors"
    written.save(path)
    read = CalibrationSample.load(path)
    for field in (*TENSORS, *OPTIONAL_TENSORS):
        before, after = getattr(written, field), getattr(read, field)
        assert (before is None) == (after is None)
        assert before is None or (before.dtype == after.dtype and torch.equal(before, after))
    assert read.layouts == list(written.layouts) and hash(read.layouts[0]) == hash(written.layouts[0])
    for before, after in zip(written.evidence, read.evidence, strict=True):
        assert before.views == after.views
        assert list(before.stored) == list(after.stored) == list(requests)
        for request, stored in before.stored.items():
            assert {name: t.tolist() for name, t in stored.items()} == {
                name: t.tolist() for name, t in after.stored[request].items()
            }
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("moment", ["before", "half", "after"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "killed"])
def test_no_half_file_under_the_final_name(moment, error, tmp_path, monkeypatch):
    written, path = observed(), tmp_path / "00000.safetensors"
    complete = search.calibration.save_file

    def fails(tensors, at, metadata):
        assert Path(at) != path
        if moment != "before":
            complete(tensors, at, metadata)
        if moment == "half":
            Path(at).write_bytes(Path(at).read_bytes()[:100])
        raise error

    monkeypatch.setattr(search.calibration, "save_file", fails)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else FlowpruneError) as caught:
        written.save(path)
    assert not list(tmp_path.iterdir())
    if caught.type is FlowpruneError:
        assert "cannot be written to" in str(caught.value) and "cache=FOLDER" in str(caught.value)


def test_a_rewrite_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    written, path = observed(), tmp_path / "00000.safetensors"
    written.save(path)
    before = path.read_bytes()
    for error in (OSError("disk"), SafetensorError("I/O error: No space left on device")):
        monkeypatch.setattr(search.calibration, "save_file", Mock(side_effect=error))
        with pytest.raises(FlowpruneError, match="free space or set cache=FOLDER"):
            written.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("folder", ["/proc/flowprune", "file/inside"])
def test_a_folder_that_cannot_be_written_is_one_sentence(folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FlowpruneError, match=r"calibration cache cannot be written to .*set cache=FOLDER"):
        observed().save(tmp_path / folder / "00000.safetensors")


def test_observing_leaves_the_model_as_it_was():
    model = tiny("llava_clip")
    inputs = sample(model)
    before = model(**inputs).logits
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    attention = model.model.vision_tower.config._attn_implementation
    observed()
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert attention == model.model.vision_tower.config._attn_implementation
    assert torch.equal(before, model(**inputs).logits)


def alike(one: torch.Tensor | None, other: torch.Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is not None:
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_observed_at_once_are_those_observed_one_by_one(name):
    """Images of several sizes, prompts of several lengths, one with two images, one with a video."""
    model = tiny(name)
    modules, own = modules_of(model), FAMILIES[name]
    requests = (ContextRelevance(-2, 0.05, 50), PatchEntropy(), VisionKeys(-1))
    media = [(1, 0), (2, 0), (1, 0), (1, 1) if own.video and own.mixes_media else (1, 0)]
    inputs = [
        sample(model, images=images, videos=videos, text=4 + 3 * (seed % 3), seed=seed, size=seed)
        for seed, (images, videos) in enumerate(media)
    ]
    found = observe_samples(modules, batch(inputs), requests, (MEAN, STD))
    for together, single in zip(found, inputs, strict=True):
        alone = observe_sample(modules, single, requests, (MEAN, STD))
        assert list(together.layouts) == list(alone.layouts)
        for field in ("owner", "position_ids"):
            assert torch.equal(getattr(together, field), getattr(alone, field))
        for field in ("embeds", "reference", "deepstack"):
            alike(getattr(together, field), getattr(alone, field))
        if alone.blocks is not None:  # numbers only tell blocks apart
            same = [each.blocks[:, None] == each.blocks[None] for each in (together, alone)]
            assert torch.equal(*same) and torch.equal(together.blocks < 0, alone.blocks < 0)
        answers = [
            token_evidence(modules.geometry, requests, alone.layouts, each.evidence) for each in (together, alone)
        ]
        for request in requests:
            for one, other in zip(*(each[request] for each in answers), strict=True):
                torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4, equal_nan=True)
