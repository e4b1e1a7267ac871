"""The calibrate stage: samples observed several at once, checkpoints, and a device without room."""

from pathlib import Path

import pytest
import torch

import pipelines.calibration
from search.calibration import CalibrationSample, observe_samples

SMALL = ("stages=[calibrate]", "experiment=smoke", "data.calibration=7")


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """How many samples each forward pass of the unpruned model was given."""
    given: list[int] = []

    def noting(modules, inputs, *args):
        given.append(len(inputs["input_ids"]))
        return observe_samples(modules, inputs, *args)

    monkeypatch.setattr(pipelines.calibration, "observe_samples", noting)
    return given


def cached(folder: Path) -> list[CalibrationSample]:
    return [CalibrationSample.load(path) for path in sorted(folder.rglob("*.safetensors"))]


def test_at_once_or_one_by_one_is_the_same_cache_and_what_is_there_is_not_done_again(
    flowprune, sizes, tmp_path, monkeypatch
):
    code, printed = flowprune(*SMALL, f"cache={tmp_path}/together")
    assert code == 0 and "observing calibration samples" in printed and "7/7" in printed
    assert sizes == [1, 6]  # the first tells how long they are
    sizes.clear()
    monkeypatch.setattr(pipelines.calibration, "TOKENS", (1, 1))
    assert flowprune(*SMALL, f"cache={tmp_path}/alone")[0] == 0
    assert sizes == [1] * 7
    together, alone = cached(tmp_path / "together"), cached(tmp_path / "alone")
    assert len(together) == len(alone) == 7
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.owner, other.owner) and torch.equal(one.position_ids, other.position_ids)
        torch.testing.assert_close(one.embeds, other.embeds, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.reference, other.reference, atol=1e-5, rtol=1e-4)
    sizes.clear()
    sorted((tmp_path / "alone").rglob("*.safetensors"))[3].unlink()
    assert flowprune(*SMALL, f"cache={tmp_path}/alone")[0] == 0
    assert sizes == [1]


def test_without_room_for_several_they_are_fewer_and_without_room_for_one_it_is_a_sentence(
    flowprune, tmp_path, monkeypatch
):
    tried: list[int] = []

    def room_for(most: int):
        def observe(modules, inputs, *args):
            tried.append(len(inputs["input_ids"]))
            if tried[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return observe_samples(modules, inputs, *args)

        return observe

    monkeypatch.setattr(pipelines.calibration, "observe_samples", room_for(2))
    assert flowprune(*SMALL, f"cache={tmp_path}/two")[0] == 0
    assert tried[:3] == [1, 6, 3] and max(tried[3:]) <= 2 and len(cached(tmp_path / "two")) == 7
    monkeypatch.setattr(pipelines.calibration, "observe_samples", room_for(0))
    code, printed = flowprune(*SMALL, f"cache={tmp_path}/none")
    words = " ".join(printed.split())
    assert code == 2 and "read unpruned, do not fit into the memory of cpu: free some of it" in words
    assert "Traceback" not in printed
