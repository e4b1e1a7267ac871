"""The latency model: fitted to what a clock says, here a clock that is a formula."""

from functools import cache

import pytest

import search.latency
from multimodal.benchmark.device import device_name
from multimodal.benchmark.stopwatch import Stopwatch
from multimodal.evidence import ContextRelevance, PatchEntropy
from multimodal.families import modules_of
from multimodal.testing.oracles import MEAN, STD, config, tiny
from multimodal.testing.tiny_models import sample
from search.calibration import CalibrationSample, observe_sample
from search.latency import Latency, measure_latency
from search.objective import Objective

NAME = "llava_clip"


@cache
def observed() -> list[CalibrationSample]:
    family = modules_of(tiny(NAME))
    requests = (ContextRelevance(-2, 1.0), PatchEntropy())
    inputs = [sample(tiny(NAME), images=1 + seed % 2, text=5 + 3 * seed, seed=seed) for seed in range(3)]
    return [observe_sample(family, each, requests, (MEAN, STD)) for each in inputs]


@pytest.fixture
def seconds_by_formula(monkeypatch):
    """Every prefill takes a time that depends on the tokens its layers see, and 4 ms if pruned; one takes too long."""

    def run(self, function) -> float:
        seen: list[int] = []
        layers = modules_of(tiny(NAME)).text_layers
        hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])) for layer in layers]
        try:
            function()
        finally:
            for hook in hooks:
                hook.remove()
        pruned = hasattr(function, "func") and isinstance(getattr(function.func, "__self__", None), Objective)
        run.calls += 1
        late = 50 if run.calls % 7 == 0 else 0
        return (sum(3 + 0.2 * tokens for tokens in seen) / len(layers) + 4 * pruned + late) / 1000

    run.calls = 0
    monkeypatch.setattr(Stopwatch, "_run", run)


def test_it_predicts_what_was_measured(seconds_by_formula, monkeypatch):
    monkeypatch.setattr(search.latency, "REPEATS", 21)
    family = modules_of(tiny(NAME))
    workload = Objective(family, observed(), batch_size=2, seed=0).workload
    probes = [config([(0, 0.6), (2, 0.5)], vision_layer=-2), config([(1, 0.3)], vision_layer=-2)]
    latency = measure_latency(family, observed(), probes, workload)
    assert latency.device == device_name(family.text_model.device)
    assert latency.pruning == pytest.approx(4, abs=0.1) and latency.error < 0.02
    assert list(latency.milliseconds) == sorted(latency.milliseconds)
    assert latency.tokens[0] <= workload.tokens_by_layer(probes[0].schedule).min()
    assert latency.tokens[-1] == workload.tokens_by_layer(()).max()
    for schedule in [*(probe.schedule for probe in probes), ()]:
        tokens = workload.tokens_by_layer(schedule)
        expected = 4 + ((3 + 0.2 * tokens).mean(0) * workload.numbers).sum() / workload.numbers.sum()
        assert latency.predict(workload, schedule) == pytest.approx(expected, rel=0.02)


def test_it_survives_json():
    latency = Latency(device="a, b", tokens=(3, 9), milliseconds=(1.25, 2.5), pruning=0.1, error=0.03)
    assert Latency.model_validate_json(latency.model_dump_json()) == latency
