"""What ``prune()`` must do to every family, in every attention backend: the oracles (a) to (d), counts, order."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from multimodal import PruningConfig, prune
from multimodal.layout import Layout
from multimodal.methods import Method
from multimodal.plan import kept_counts
from multimodal.testing.contracts import (
    BACKENDS,
    EXACT,
    THOROUGH,
    assert_restored,
    backends,
    cases,
    claim,
    equals_masking,
    families,
    fitting,
    generated,
    mixed_samples,
    no_gradients,  # noqa: F401
    refused,
    rows_of_one_length,
    run_pruned,
    snapshot,
    spread,
)
from multimodal.testing.oracles import (
    SCHEDULES,
    config,
    tiny,
    tokens_of,
    vision_maps,
)
from multimodal.testing.tiny_models import FAMILIES, LAYERS, batch, is_visual, sample

# (a) pruning equals masking


PROMPTS: dict[str, Callable[[PreTrainedModel], dict]] = {
    "image": lambda model: sample(model, images=1),
    "several images": lambda model: sample(model, images=2),
    "batch": lambda model: batch(mixed_samples(model)),
    "even batch": rows_of_one_length,
    "video": lambda model: sample(model, images=0, videos=1),
    "videos and images": lambda model: batch([sample(model, images=1, videos=2), *mixed_samples(model)[1:3]]),
}
SHOWS = {"several images": ("image",), "batch": ("image", "several images"), "videos and images": ("video", "batch")}
# sdpa meets every prompt; the others a padded batch, and flash attention, which takes no mask, rows without padding
LAST = ("video", "videos and images")
BY_BACKEND = {"sdpa": tuple(PROMPTS), "eager": ("batch", *LAST), "fake_flash": ("several images", "even batch", *LAST)}
MASKED = [
    pytest.param(name, attention, schedule, prompts_name, id=f"{name}-{attention}-{schedule_name}-{prompts_name}")
    for name, own in FAMILIES.items()
    for attention in BACKENDS
    for schedule_name, schedule in SCHEDULES.items()
    if name in THOROUGH or schedule_name == "layer 0 and inner"
    for prompts_name in BY_BACKEND[attention]
    if own.video or "video" not in prompts_name
    if own.mixes_media or prompts_name != "videos and images"
    if attention == "sdpa" or not own.mixes_media or prompts_name != "video"
]


@pytest.mark.parametrize(("name", "attention", "schedule", "prompts"), MASKED)
def test_pruning_equals_masking(
    name: str, attention: str, schedule: tuple, prompts: str, record_property: Callable
) -> None:
    model = tiny(name, attention)
    refusal = refused(model, attention, config(schedule))
    for kind in (prompts, *SHOWS.get(prompts, ())):
        record_property(*claim(model, kind, attention, refusal))
    if refusal:
        return
    equals_masking(name, attention, PROMPTS[prompts](model), config(schedule))


@families
def test_what_is_not_run_has_its_reason(name: str, record_property: Callable) -> None:
    own = FAMILIES[name]
    gaps = dict(own.gaps) if own.video else {"video": "The model reads no videos."} | own.gaps
    for kind, reason in gaps.items():
        for attention in BACKENDS:
            record_property(*claim(tiny(name), kind, attention, reason))


# (b) keeping all equals the stock model


@spread(
    attention=["sdpa", "eager", "fake_flash"],
    fields=[{"recycling_cell": 1.0, "recycling_weight": 1.0}, {}, {"positions": "compact"}, {"name": "uniform"}],
)
def test_keeping_everything_changes_nothing(name: str, attention: str, fields: dict) -> None:
    model = tiny(name, attention)
    inputs = batch(mixed_samples(model))
    everything = fitting(model, config([(0, 1.0), (2, 1.0), (3, 1.0)], **fields))
    if refused(model, attention, everything):
        return
    stock = generated(model, inputs)
    with prune(model, everything) as pruner:
        pruned = generated(model, inputs)
    assert torch.equal(stock.sequences, pruned.sequences)
    for ours, theirs in zip(pruned.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    for row, entry in enumerate(pruner.report):
        padding = int((inputs["attention_mask"][row] == 0).sum())
        assert entry.retention == 1.0
        assert entry.kv_bytes == entry.kv_bytes_unpruned
        for kept in entry.kept:
            assert torch.equal(kept, is_visual(inputs)[row, padding:].nonzero()[:, 0])


# (c) a batch row equals the sample alone


@cases
def test_batch_row_equals_sample_alone(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    chosen = fitting(model, chosen)
    if refused(model, attention, chosen):
        return
    samples = mixed_samples(model)
    with prune(model, chosen) as pruner:
        together, report = generated(model, batch(samples)), pruner.report
        for row, alone in enumerate(samples):
            output = generated(model, alone)
            assert torch.equal(output.sequences[0, -4:], together.sequences[row, -4:])
            for ours, theirs in zip(output.logits, together.logits, strict=True):
                torch.testing.assert_close(ours[0], theirs[row], **EXACT)
            if is_visual(alone).any():
                [entry] = pruner.report
                assert entry.kv_bytes == report[row].kv_bytes
                for ours, theirs in zip(entry.kept, report[row].kept, strict=True):
                    assert torch.equal(ours, theirs)


# (d) the model is as it was


class Failing(Method):
    """A method that fails before one layer."""

    name: str = "failing"
    layer: int = 0

    def score(self, tokens: Any) -> torch.Tensor:
        if tokens.layer == self.layer:
            raise RuntimeError("inside a hook")
        return torch.zeros(tokens.index.shape)


@spread(attention=["sdpa", "eager", "fake_flash"])
def test_model_is_restored(name: str, attention: str) -> None:
    model = tiny(name, attention)
    if refused(model, attention, config()):
        return
    inputs = sample(model, images=1)
    logits = model(**inputs, output_hidden_states=True).logits  # transformers hooks what it records, once
    before = snapshot(model)

    with prune(model, config(recycling_cell=3.0)):
        assert snapshot(model) != before
        generated(model, inputs)
    assert_restored(model, inputs, before, logits)

    with pytest.raises(KeyError), prune(model, config()):
        raise KeyError
    assert_restored(model, inputs, before, logits)

    for layer in (0, 2):
        with pytest.raises(RuntimeError, match="inside a hook"), prune(model, config(name="failing", layer=layer)):
            model(**inputs)
        assert_restored(model, inputs, before, logits)


@families
def test_an_exception_leaves_nothing_for_the_next_prompt(name: str) -> None:
    model = tiny(name)
    inputs, text = sample(model, images=1), sample(model, images=0)
    stock = model(**text).logits
    alone = run_pruned(model, inputs, config())[1]
    with prune(model, config()):
        with pytest.raises(ValueError):  # the model itself refuses: fewer placeholders than features
            model(**inputs | {"input_ids": inputs["input_ids"][:, 12:], "attention_mask": None})
        assert torch.equal(model(**text).logits, stock)
        assert torch.equal(model(**inputs).logits, alone)
    with prune(model, config(name="failing", layer=2)):
        with pytest.raises(RuntimeError, match="inside a hook"):
            model(**inputs)
        assert torch.equal(model(**text).logits, stock)


# what is kept


@spread(fields=[{"recycling_cell": 2.5}, {}, {"name": "uniform"}, {"name": "random"}])
def test_counts_are_exact_and_kept_is_sorted_and_nested(name: str, fields: dict) -> None:
    model = tiny(name)
    inputs = batch(mixed_samples(model))
    chosen = config(**fields)
    report = run_pruned(model, inputs, chosen)[3]
    images = [
        Layout(((sum(map(bool, tokens)), 1),), tuple(range(tokens.count(None)))) for tokens in tokens_of(model, inputs)
    ]
    for row in range(4):
        padding = int((inputs["attention_mask"][row] == 0).sum())
        before = is_visual(inputs)[row, padding:].nonzero()[:, 0]
        own: list[Layout] = []
        while sum(layout.visual_tokens for layout in own) < len(before):
            own.append(images.pop(0))
        entry = report[row]
        assert entry.visual_tokens == len(before) == sum(layout.visual_tokens for layout in own)
        for step, kept in enumerate(entry.kept):
            assert len(kept) == sum(kept_counts(layout, chosen.schedule)[step] for layout in own)
            assert torch.equal(kept, kept.unique())
            assert set(kept.tolist()) <= set(before.tolist())
            before = kept
        seen = [
            len(entry.kept[sum(step.layer <= layer for step in chosen.schedule) - 1])
            for layer in range(LAYERS)  # the first step is at layer 0
        ]
        assert entry.retention == pytest.approx(sum(seen) / LAYERS / entry.visual_tokens if own else 1.0)


@families
def test_inner_steps_keep_a_share_of_what_is_left(name: str) -> None:
    """Also where the released count leaves more or fewer tokens than the step at layer 0 asked for."""
    model = tiny(name)
    inputs = batch(mixed_samples(model))
    differs = False
    for cell in (1.7, 5.0):
        chosen = config(recycling_cell=cell, recycling_count="released")
        single = [run_pruned(model, alone, chosen)[3][0] for alone in mixed_samples(model) if "pixel_values" in alone]
        entries = [entry for entry in run_pruned(model, inputs, chosen)[3] if entry.visual_tokens]
        for entry, alone in zip(entries, single, strict=True):
            assert [kept.tolist() for kept in entry.kept] == [kept.tolist() for kept in alone.kept]
        for entry in (single[0], single[2]):  # of one image
            counts = [len(kept) for kept in entry.kept]
            differs |= counts[0] != math.floor(chosen.schedule[0].keep_ratio * entry.visual_tokens + 0.5)
            for before, after, step in zip(counts, counts[1:], chosen.schedule[1:], strict=False):
                assert after == math.floor(step.keep_ratio * before + 0.5)
    assert differs  # some step at layer 0 left another number


@families
@backends
def test_kept_are_the_top_of_the_map(name: str, attention: str) -> None:
    model = tiny(name, attention)
    inputs = sample(model, images=2)
    threshold, weight = 1.2, 0.8
    chosen = config(query_threshold=threshold, entropy_weight=weight)
    if refused(model, attention, chosen):
        return
    [entry] = run_pruned(model, inputs, chosen)[3]
    places = is_visual(inputs)[0].nonzero()[:, 0].numpy()
    expected: list[list[int]] = [[] for _ in chosen.schedule]
    for values in vision_maps(model, inputs, threshold, weight):
        own, places = places[: len(values)], places[len(values) :]
        left = np.where(np.isnan(values), np.inf, values)  # newline tokens always stay
        order = np.argsort(-left, kind="stable")
        count = len(values)
        for number, step in enumerate(chosen.schedule):
            count = math.floor(step.keep_ratio * count + 0.5)
            expected[number] += sorted(own[order[:count]].tolist())
    assert [kept.tolist() for kept in entry.kept] == expected


@spread(fields=[{}, {"name": "uniform"}])
def test_newline_tokens_stay(name: str, fields: dict) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    with prune(model, config([(0, 0.01), (2, 0.01)], **fields)) as pruner:
        model(**inputs)
    places = is_visual(inputs)[0].nonzero()[:, 0]
    values = np.concatenate(vision_maps(model, inputs, 1.0, 0.5))
    assert len(values) == len(places)
    newlines = set(places[torch.from_numpy(np.isnan(values))].tolist())
    for kept in pruner.report[0].kept:
        assert newlines <= set(kept.tolist())
        assert len(kept) == len(newlines) + len(tokens_of(model, inputs))  # and one patch token an image
