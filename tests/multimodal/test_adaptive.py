"""Budgets that adapt: what an image may keep, by hand from its embeddings."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.adaptive import Adaptive, varieties, variety
from multimodal.costs import Workload
from multimodal.families import modules_of
from multimodal.testing.contracts import EXACT
from multimodal.testing.oracles import attention_masks, run_masked, stock_masks, tiny
from multimodal.testing.tiny_models import batch, is_visual, sample

STEPS = [(0, 0.4), (2, 0.5)]


def config(method: str = "divprune", **adaptive: float) -> PruningConfig:
    fields = {"strength": 3.0, "reference": 0.5} | adaptive
    schedule = [{"layer": layer, "keep_ratio": ratio} for layer, ratio in STEPS]
    return PruningConfig(method={"name": method}, schedule=schedule, adaptive=fields)


def embeddings(model: PreTrainedModel, inputs: dict) -> list[Tensor]:
    """Input embeddings of the visual tokens of each image of the first row."""
    noted: list[Tensor] = []
    text = modules_of(model).text_model
    handle = text.register_forward_pre_hook(
        lambda _, args, kwargs: noted.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    where = is_visual(inputs)[0].nonzero()[:, 0]
    runs = np.split(where, np.flatnonzero(np.diff(where) != 1) + 1)
    return [noted[0][torch.as_tensor(run)] for run in runs]


def shares(images: list[Tensor], adaptive: Adaptive) -> list[float]:
    found = []
    for image in images:
        unit = image.double().numpy()
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        own = 1 - np.linalg.norm(unit.mean(0))
        share = (own / adaptive.reference) ** adaptive.strength
        found.append(min(max(share, 1 / adaptive.cap), adaptive.cap))
    return found


def test_variety_is_zero_for_tokens_alike_and_one_for_opposites() -> None:
    one = torch.randn(1, 8)
    assert variety(one.expand(5, -1) * torch.rand(5, 1)) == pytest.approx(0, abs=1e-6)
    assert variety(torch.cat([one, -2 * one])) == pytest.approx(1)
    assert varieties([]) == [] and len(varieties([one, one])) == 2


@pytest.mark.parametrize("name", ["llava_clip", "llava_siglip", "qwen2_5_vl"])
def test_images_keep_by_what_they_have_to_see(name: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=2, seed=3)
    images = embeddings(model, inputs)
    assert len(images) == 2
    chosen = config(reference=float(np.mean([float(variety(image)) for image in images])), strength=8.0)
    expected = []
    for image, share in zip(images, shares(images, chosen.adaptive), strict=True):
        first = max(1, math.floor(min(0.4 * round(share, 3), 1) * len(image) + 0.5))
        expected.append([first, max(1, math.floor(0.5 * first + 0.5))])
    with prune(model, chosen) as pruner:
        pruned = model(**inputs).logits
        kept = pruner.report[0].kept
    assert [len(step) for step in kept] == [sum(counts) for counts in zip(*expected, strict=True)]
    masks = attention_masks(stock_masks(model, inputs), inputs, [kept], STEPS)
    _, logits = run_masked(model, inputs, masks)
    torch.testing.assert_close(pruned[0, -1], logits[0, -1], **EXACT)


def test_a_row_keeps_what_it_keeps_alone() -> None:
    model = tiny("llava_clip")
    alone = [sample(model, images=n, seed=n, text=4 + n) for n in (1, 2, 0)]
    chosen = config(strength=8.0)
    with prune(model, chosen) as pruner:
        logits = model(**batch(alone)).logits
        together = pruner.report
        for number, inputs in enumerate(alone[:2]):
            own = model(**inputs).logits
            for kept, expected in zip(together[number].kept, pruner.report[0].kept, strict=True):
                assert torch.equal(kept, expected)
            torch.testing.assert_close(logits[number, -1], own[0, -1], **EXACT)
        generated = model.generate(**batch(alone), max_new_tokens=3, do_sample=False)
    assert len(generated) == 3


def test_no_image_keeps_more_than_the_cap_or_all() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=1)
    visual = int(is_visual(inputs).sum())
    for reference, kept in ((1e-3, min(visual, round(0.4 * 1.5 * visual))), (1.0, round(0.4 / 1.5 * visual))):
        with prune(model, config(reference=reference, strength=8.0, cap=1.5)) as pruner:
            model(**inputs)
            assert abs(len(pruner.report[0].kept[0]) - kept) <= 1
    with prune(model, config(reference=1e-6, cap=100.0)) as pruner:
        model(**inputs)
        assert len(pruner.report[0].kept[0]) == visual


def test_strength_zero_is_the_equal_share() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=2)
    with prune(model, config(strength=0.0)) as pruner:
        model(**inputs)
        adaptive = pruner.report[0].kept
    with prune(model, config().model_copy(update={"adaptive": None})) as pruner:
        model(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(adaptive, pruner.report[0].kept, strict=True))


def test_a_workload_counts_what_the_pruner_keeps() -> None:
    model = tiny("llava_clip")
    modules = modules_of(model)
    prompts = [sample(model, images=n, seed=n, text=5) for n in (1, 2, 1)]
    chosen, seen, counted, retention = config(strength=6.0), [], [], []
    for inputs in prompts:
        seen.append([float(variety(image)) for image in embeddings(model, inputs)])
        layouts = modules.geometry.layouts(inputs)
        text = inputs["input_ids"].shape[1] - sum(layout.visual_tokens for layout in layouts)
        counted.append((layouts, text))
        with prune(model, chosen) as pruner:
            model(**inputs)
            retention.append((pruner.report[0].retention, pruner.report[0].visual_tokens))
    workload = Workload(modules.text_model.config, counted, lambda: seen)
    expected = sum(share * tokens for share, tokens in retention) / sum(tokens for _, tokens in retention)
    assert workload.adapted(chosen.adaptive).shares(chosen.schedule).retention == pytest.approx(expected)
    assert workload.adapted(None) is workload
    with pytest.raises(FlowpruneError, match="needs the images' embeddings: run stages=\\[calibrate\\] first"):
        Workload(modules.text_model.config, counted).adapted(chosen.adaptive)
