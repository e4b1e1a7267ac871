"""The objective on cached features against the slow way: each sample alone, from pixels, pruned and unpruned."""

from functools import cache

import numpy as np
import pytest
import torch

import search.batches
from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import ContextRelevance, PatchEntropy
from multimodal.families import modules_of
from multimodal.testing.contracts import fitting
from multimodal.testing.oracles import INNER_ONLY, MEAN, STD, config, hooked, text_model, tiny
from multimodal.testing.tiny_models import FAMILIES, sample
from search.calibration import CalibrationSample, observe_sample
from search.objective import Objective, discrepancy_of, measure_named

CONFIGS = {
    "original": config(vision_layer=-2),
    "compact": config(positions="compact", entropy_weight=-0.7),
    "no entropy": config(entropy_weight=0.0, query_threshold=0.3),
    "inner only": config(INNER_ONLY),
    "recycling": config(recycling_cell=2.5, positions="compact"),
    "weighted": config(recycling_cell=3.0, recycling_weight=0.8),
    "released": config(recycling_cell=3.0, recycling_count="released", recycling_weight=0.4, positions="compact"),
    "uniform": config(name="uniform"),
    "random": config(name="random"),
    "fastv": config(INNER_ONLY, name="fastv"),
    "divprune": config(name="divprune", positions="compact"),
}
MODELS = [("llava_siglip", "eager"), *((name, "sdpa") for name in FAMILIES)]
models = pytest.mark.parametrize(("name", "attention"), MODELS)
THOROUGH = ("llava_siglip", "llava_onevision")


@cache
def inputs_of(name: str, attention: str) -> list[dict]:
    """Images of several sizes, prompts of several lengths, one with two images."""
    model = tiny(name, attention)
    images = [1, 1, 2, 1, 1]
    videos = [0, 0, 0, 1 if FAMILIES[name].video else 0, 0]
    if videos[3] and not FAMILIES[name].mixes_media:
        images[3] = 0
    return [
        sample(model, images=n, videos=videos[seed], text=5 + 3 * (seed % 3), seed=seed, size=seed)
        for seed, n in enumerate(images)
    ]


@cache
def observed(name: str, attention: str) -> list[CalibrationSample]:
    family = modules_of(tiny(name, attention))
    requests = (ContextRelevance(-2, 0.05, 50), ContextRelevance(-1, 0.05, 50), PatchEntropy())
    return [observe_sample(family, inputs, requests, (MEAN, STD)) for inputs in inputs_of(name, attention)]


def objective(name: str = "llava_clip", attention: str = "sdpa", batch_size: int = 3, seed: int = 0) -> Objective:
    return Objective(modules_of(tiny(name, attention)), observed(name, attention), batch_size, seed)


def last_state(model, inputs: dict) -> np.ndarray:
    """What the final norm makes of the last prompt token."""
    seen = []
    with hooked([text_model(model).norm.register_forward_hook(lambda *args: seen.append(args[2]))]):
        model(**inputs)
    return seen[0][0, -1].double().numpy()


@cache
def full_states(name: str, attention: str) -> list[np.ndarray]:
    """Of the unpruned model, from pixels."""
    return [last_state(tiny(name, attention), inputs) for inputs in inputs_of(name, attention)]


def slow_discrepancies(name: str, attention: str, chosen: PruningConfig) -> list[float]:
    model, found = tiny(name, attention), []
    for inputs, full in zip(inputs_of(name, attention), full_states(name, attention), strict=True):
        with prune(model, chosen):
            pruned = last_state(model, inputs)
        found.append(1 - full @ pruned / np.linalg.norm(full) / np.linalg.norm(pruned))
    return found


@pytest.mark.parametrize(
    ("name", "attention", "chosen"),
    [
        pytest.param(*model, chosen, id=f"{'-'.join(model)}-{config_name}")
        for model in MODELS
        for config_name, chosen in CONFIGS.items()
        if model[0] in THOROUGH or config_name in ("compact", "weighted", "fastv", "divprune")
    ],
)
def test_discrepancy_equals_each_sample_alone_from_pixels(name, attention, chosen):
    chosen = fitting(tiny(name, attention), chosen)
    expected = slow_discrepancies(name, attention, chosen)
    assert max(expected) > 1e-3  # pruning is seen
    for batch_size in (1, 2, 5):
        found = objective(name, attention, batch_size).evaluate(chosen)
        np.testing.assert_allclose(sorted(found), sorted(expected), atol=2e-5)


@models
@pytest.mark.parametrize("method", [{"name": "random"}, {"recycling_cell": 1.0, "recycling_weight": 1.0}, {}])
def test_keeping_everything_changes_nothing(name, attention, method):
    everything = fitting(tiny(name, attention), config([(0, 1.0), (2, 1.0)], positions="compact", **method))
    assert np.abs(objective(name, attention).evaluate(everything)).max() < 1e-6


def test_order_depends_on_the_seed_and_the_mean_does_not():
    chosen = CONFIGS["weighted"]
    runs = [objective(batch_size=1, seed=seed).evaluate(chosen) for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) > 1
    np.testing.assert_allclose([np.mean(run) for run in runs], np.mean(runs[0]), rtol=1e-6)


def test_reference_is_the_unpruned_models_last_state():
    for inputs, seen in zip(inputs_of("llava_onevision", "sdpa"), observed("llava_onevision", "sdpa"), strict=True):
        np.testing.assert_allclose(seen.reference, last_state(tiny("llava_onevision"), inputs), atol=1e-5)
        assert int(seen.is_visual.sum()) == sum(layout.visual_tokens for layout in seen.layouts)


@models
def test_shares_are_what_the_pruner_reports(name, attention):
    model, chosen = tiny(name, attention), config(recycling_cell=2.5)
    reports = []
    for inputs in inputs_of(name, attention):
        with prune(model, chosen) as pruner:
            model(**inputs)
        reports += pruner.report
    shares = objective(name, attention).shares(chosen)
    visual = sum(report.visual_tokens for report in reports)
    assert shares["retention"] == pytest.approx(sum(r.retention * r.visual_tokens for r in reports) / visual)
    kv = sum(report.kv_bytes for report in reports) / sum(report.kv_bytes_unpruned for report in reports)
    assert shares["kv_share"] == pytest.approx(kv)
    assert 0 < shares["flops_share"] < 1


def test_a_trial_runs_neither_the_tower_nor_the_head():
    model, called = tiny("llava_clip"), []
    handles = [
        module.register_forward_hook(lambda *_: called.append(1))
        for module in (model.model.vision_tower, model.model.multi_modal_projector, model.lm_head)
    ]
    with hooked(handles):
        objective().evaluate(CONFIGS["recycling"])
    assert not called


def test_samples_are_told_as_they_come_and_stopping_leaves_the_model_as_it_was():
    of, chosen, lengths = objective(batch_size=2), CONFIGS["compact"], []
    whole = of.evaluate(chosen, lambda found: lengths.append(len(found)))
    assert lengths[-1] == 5 and lengths == sorted(lengths) and len(lengths) == 3

    def stop(found: list[float]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        of.evaluate(chosen, stop)
    assert of.evaluate(chosen) == whole


@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl", "gemma3"])
def test_a_batch_that_the_device_has_no_room_for_is_halved_once_and_nothing_is_lost(name):
    chosen = CONFIGS["compact" if name == "gemma3" else "original"]
    alone = objective(name, batch_size=1)
    expected = dict(zip(alone.order, alone.evaluate(chosen), strict=True))
    of = objective(name, batch_size=5)
    order, tried = list(of.order), []

    def no_room(_module, args) -> None:
        tried.append(len(args[0]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with hooked([of.modules.text_layers[1].register_forward_pre_hook(no_room)]):
        first, second = of.evaluate(chosen), of.evaluate(chosen)
    assert tried == [5, 2, 3, 1, 2, 2, 1, 2]
    assert of.order == order == [number for batch in of.batches for number in batch.numbers]
    np.testing.assert_allclose(first, [expected[number] for number in order], atol=2e-6)
    assert second == first


def test_one_sample_without_room_is_one_sentence():
    def no_room(*_) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    of = objective(batch_size=2)
    with (
        hooked([of.modules.text_layers[0].register_forward_pre_hook(no_room)]),
        pytest.raises(FlowpruneError, match=r"one calibration sample of \d+ tokens does not fit .* smaller dtype"),
    ):
        of.evaluate(CONFIGS["compact"])


def test_evidence_that_the_trial_before_asked_for_is_not_made_again(monkeypatch):
    made, own = [], search.batches.token_evidence

    def noting(geometry, requests, layouts, evidence):
        made.extend(type(request).__name__ for request in requests)
        return own(geometry, requests, layouts, evidence)

    of, configs = objective(batch_size=5), [config(query_threshold=threshold) for threshold in (5.0, 5.0, 9.0, 5.0)]
    afresh = [objective(batch_size=5).evaluate(chosen) for chosen in configs]
    monkeypatch.setattr(search.batches, "token_evidence", noting)
    assert [of.evaluate(chosen) for chosen in configs] == afresh
    assert made == ["ContextRelevance", "PatchEntropy", "ContextRelevance", "ContextRelevance"]


@pytest.mark.parametrize("name", ["llava_clip", "llava_onevision", "gemma3"])
@pytest.mark.parametrize("method", [{"name": "flowcut"}, {"name": "ipcv", "depth": 0.5, "keep": 0.4}], ids=str)
def test_a_method_that_prunes_inside_the_tower_is_tried_with_the_tower(name, method, tmp_path):
    chosen = PruningConfig(method=method, schedule=[{"layer": 0, "keep_ratio": 0.3}, {"layer": 2, "keep_ratio": 0.5}])
    family = modules_of(tiny(name))
    samples = []
    for number, inputs in enumerate(inputs_of(name, "sdpa")):
        path = tmp_path / f"{number}.safetensors"
        observe_sample(family, inputs, [], None, keep_inputs=True).save(path)
        samples.append(CalibrationSample.load(path))
    of = Objective(family, samples, 2, 0)
    expected = slow_discrepancies(name, "sdpa", chosen)
    np.testing.assert_allclose(of.evaluate(chosen), [expected[number] for number in of.order], atol=2e-5)
    assert max(of.evaluate(config(name="divprune"))) > 0  # the same samples serve other methods
    with pytest.raises(FlowpruneError, match="hold no pixels, which a method that prunes inside the tower needs"):
        objective(name).evaluate(chosen)


@models
def test_next_token_kl_equals_the_models_own_logits(name, attention):
    model, chosen = tiny(name, attention), fitting(tiny(name, attention), CONFIGS["compact"])
    expected = []
    for inputs in inputs_of(name, attention):
        full = model(**inputs).logits[0, -1].double().log_softmax(-1).numpy()
        with prune(model, chosen):
            pruned = model(**inputs).logits[0, -1].double().log_softmax(-1).numpy()
        expected.append(float(np.sum(np.exp(full) * (full - pruned))))
    assert max(expected) > 1e-6 and min(expected) > -1e-6
    modules = modules_of(model)
    searched = Objective(modules, observed(name, attention), 2, 0, measure_named("kl", modules))
    np.testing.assert_allclose(
        [searched.evaluate(chosen)[searched.order.index(n)] for n in range(5)], expected, atol=2e-6
    )
    hidden, reference = searched.hidden_states(chosen)  # in the samples' own order
    np.testing.assert_allclose(
        discrepancy_of(hidden, reference), slow_discrepancies(name, attention, chosen), atol=2e-5
    )


def test_a_search_that_ends_early_leaves_the_model_as_it_was():
    class Enough(Exception):
        pass

    def stop(_: list[float]) -> None:
        raise Enough

    for _ in range(2):  # the second would find the model being pruned
        with pytest.raises(Enough):
            objective(batch_size=1).evaluate(CONFIGS["compact"], stop)
