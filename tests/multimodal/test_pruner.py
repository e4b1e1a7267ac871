"""The contract of ``prune()``, over every family and attention backend."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from oracles import (
    INNER_ONLY,
    SCHEDULES,
    attention_masks,
    config,
    decoder,
    extended,
    grid_places,
    recycle_exactly,
    run_masked,
    tiny,
    tokens_of,
    vision_maps,
)
from tiny_models import BUILDERS, CACHE, ENCODES_FIRST, IMAGE_TOKEN, LAYERS, batch, sample
from transformers import PreTrainedModel, StaticCache

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.costs import kept_counts
from multimodal.families import family_of
from multimodal.methods import Method

EXACT = {"atol": 1e-5, "rtol": 1e-5}
ROTATED = {"atol": 1e-4, "rtol": 0}

families = pytest.mark.parametrize("name", BUILDERS)
backends = pytest.mark.parametrize("attention", ["eager", "sdpa", "fake_flash"])
some = pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, "sdpa") for name in BUILDERS), ("llava_dinov2", "eager"), ("llava_onevision", "fake_flash")],
)

CONFIGS = {
    "original": config(),
    "compact": config(positions="compact"),
    "inner only": config(INNER_ONLY, positions="compact"),
    "recycling": config(recycling_cell=2.5, positions="compact"),
    "weighted": config(recycling_cell=2.5, recycling_weight=0.7),
    "released": config(recycling_cell=3.0, recycling_count="released", recycling_weight=0.5),
    "uniform": config(name="uniform"),
    "random": config(name="random"),
}
configs = pytest.mark.parametrize("chosen", CONFIGS.values(), ids=CONFIGS)


def mixed_samples(model: PreTrainedModel) -> list[dict]:
    """One image, two images with text between, none; of several sizes and lengths."""
    return [
        sample(model, images=1, text=5, seed=1, size=0),
        sample(model, images=2, text=7, seed=2, size=1),
        sample(model, images=0, text=11, seed=3),
        sample(model, images=1, text=12, seed=4, size=2),
    ]


def copied_samples(model: PreTrainedModel) -> list[dict]:
    """Samples that generate() may copy: with several images where this transformers keeps them in order."""
    one, two, none, another = mixed_samples(model)
    return [one, two, none] if ENCODES_FIRST else [one, none, another]


def rows_of_one_length(model: PreTrainedModel) -> dict:
    """Unpadded at first, padded once rows have lost different numbers of tokens."""
    long, short = sample(model, images=2, text=4, seed=1), sample(model, images=1, text=4, seed=2)
    more = torch.randint(9, 60, (1, long["input_ids"].shape[1] - short["input_ids"].shape[1]))
    return batch([long, extended(short, more)])


def forced_tokens(rows: int, steps: int = 3) -> torch.Tensor:
    return torch.randint(9, 60, (rows, steps), generator=torch.Generator().manual_seed(5))


def run_pruned(
    model: PreTrainedModel, inputs: dict, chosen: PruningConfig, forced: torch.Tensor | None = None
) -> tuple:
    """Prefill and decode forced tokens: final hidden states of the prefill, logits of both, the report."""
    hidden: list = []
    with prune(model, chosen) as pruner:
        handle = model.lm_head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        output = model(**inputs)
        logits, decoded = output.logits, []
        for token in [] if forced is None else forced.T:
            output = model(input_ids=token[:, None], **{CACHE: output[CACHE]})
            decoded.append(output.logits)
        handle.remove()
    return hidden[0], logits, torch.cat(decoded, 1) if decoded else None, pruner.report


def generated(model: PreTrainedModel, inputs: dict, **options: Any) -> Any:
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True} | options
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def best(logits: torch.Tensor) -> torch.Tensor:
    """What greedy decoding picks: never a placeholder."""
    return logits.index_fill(-1, torch.tensor(IMAGE_TOKEN), -torch.inf).argmax(-1)


def refused(model: PreTrainedModel, attention: str, chosen: PruningConfig) -> bool:
    """Flash attention takes no additive mask, so no weights on recycled tokens: it must say so."""
    if attention != "fake_flash" or not chosen.method.biases_attention:
        return False
    with pytest.raises(FlowpruneError, match="recycling_weight needs an additive mask"), prune(model, chosen):
        pass
    return True


def is_visual(inputs: dict) -> torch.Tensor:
    return inputs["input_ids"] == IMAGE_TOKEN


# (a) pruning equals masking


@families
@backends
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(
    "prompts",
    [
        lambda model: sample(model, images=2),
        lambda model: batch(mixed_samples(model)),
        rows_of_one_length,
    ],
    ids=["one", "batch", "even batch"],
)
def test_pruning_equals_masking(name: str, attention: str, schedule: tuple, prompts: Any) -> None:
    model = tiny(name, attention)
    inputs = prompts(model)
    rows, length = inputs["input_ids"].shape
    forced = forced_tokens(rows)
    hidden, logits, decoded, report = run_pruned(model, inputs, config(schedule), forced)

    whole = extended(inputs, forced)
    kept = [entry.kept for entry in report]
    masks = attention_masks(whole["attention_mask"].bool(), is_visual(whole), kept, schedule, LAYERS)
    reference = tiny(name, "sdpa" if attention == "fake_flash" else attention)
    masked_hidden, masked_logits = run_masked(reference, whole, masks)

    torch.testing.assert_close(hidden[:, -1], masked_hidden[:, length - 1], **EXACT)
    torch.testing.assert_close(decoded, masked_logits[:, length:], **EXACT)
    for row in range(rows):
        padding = int((inputs["attention_mask"][row] == 0).sum())
        left = is_visual(inputs)[row].logical_not()
        left[:padding] = False
        left[kept[row][-1] + padding] = True
        survivors = left.nonzero()[:, 0]
        torch.testing.assert_close(logits[row, -len(survivors) :], masked_logits[row, survivors], **EXACT)
        text = ~is_visual(inputs)[row, survivors]
        assert text.sum() == (inputs["attention_mask"][row].bool() & ~is_visual(inputs)[row]).sum()

    untouched = run_masked(
        reference, whole, attention_masks(whole["attention_mask"].bool(), is_visual(whole), [()], (), LAYERS)
    )
    assert (untouched[0][:2, length - 1] - hidden[:2, -1]).abs().max() > 1e-2  # the test has teeth


def test_layers_of_one_stage_may_have_masks_of_their_own() -> None:
    """As layers with and without a sliding window have."""
    model = tiny("llava_clip", "eager")
    inputs = sample(model, images=1)
    lowest = torch.finfo(torch.float32).min

    def hide(_: Any, args: tuple, kwargs: dict) -> tuple:
        return args, kwargs | {"attention_mask": kwargs["attention_mask"].clone().index_fill_(-1, hidden_place, lowest)}

    hidden_place = torch.tensor(2)
    handle = model.model.language_model.layers[2].register_forward_pre_hook(hide, with_kwargs=True)
    hidden, _, _, [entry] = run_pruned(model, inputs, config(INNER_ONLY))
    handle.remove()
    valid = inputs["attention_mask"].bool()
    masks = attention_masks(valid, is_visual(inputs), [entry.kept], INNER_ONLY, LAYERS)
    before = run_masked(model, inputs, masks)[0]
    masks[2].index_fill_(-1, hidden_place, lowest)
    torch.testing.assert_close(hidden[:, -1], run_masked(model, inputs, masks)[0][:, -1], **EXACT)
    assert not torch.allclose(hidden[:, -1], before[:, -1], atol=1e-3)


# (b) keeping all equals the stock model


@families
@backends
@pytest.mark.parametrize(
    "fields",
    [{}, {"positions": "compact"}, {"recycling_cell": 1.0, "recycling_weight": 1.0}, {"name": "uniform"}],
    ids=str,
)
def test_keeping_everything_changes_nothing(name: str, attention: str, fields: dict) -> None:
    model = tiny(name, attention)
    inputs = batch(mixed_samples(model))
    everything = config([(0, 1.0), (1, 1.0), (3, 1.0)], **fields)
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


@some
@configs
def test_batch_row_equals_sample_alone(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
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


def snapshot(model: PreTrainedModel) -> dict:
    """Every attribute name, hook and attention implementation of every module."""
    return {
        path: (
            sorted(vars(module).keys() - {"_previous_max_cache_length"}),  # left by transformers' static generation
            [list(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")],
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for path, module in model.named_modules()
    }


class Failing(Method):
    name: str = "failing"
    layer: int = 0

    def score(self, tokens: Any) -> torch.Tensor:
        if tokens.layer == self.layer:
            raise RuntimeError("inside a hook")
        return torch.zeros(tokens.index.shape)


def assert_restored(model: PreTrainedModel, inputs: dict, before: dict, logits: torch.Tensor) -> None:
    assert snapshot(model) == before
    assert "get_image_features" not in vars(model.model)
    assert torch.equal(model(**inputs).logits, logits)


@families
@backends
def test_model_is_restored(name: str, attention: str) -> None:
    model = tiny(name, attention)
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


@families
@pytest.mark.parametrize("fields", [{}, {"recycling_cell": 2.5}, {"name": "uniform"}, {"name": "random"}], ids=str)
def test_counts_are_exact_and_kept_is_sorted_and_nested(name: str, fields: dict) -> None:
    model = tiny(name)
    inputs = batch(mixed_samples(model))
    chosen = config(**fields)
    report = run_pruned(model, inputs, chosen)[3]
    layouts = iter(family_of(model).layouts(inputs))
    for row, images in enumerate([1, 2, 0, 1]):
        own = [next(layouts) for _ in range(images)]
        padding = int((inputs["attention_mask"][row] == 0).sum())
        before = is_visual(inputs)[row, padding:].nonzero()[:, 0]
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
        assert entry.retention == pytest.approx(sum(seen) / LAYERS / entry.visual_tokens if images else 1.0)


@families
def test_inner_steps_keep_a_share_of_what_is_left(name: str) -> None:
    """Also where the released count leaves more or fewer tokens than the step at layer 0 asked for."""
    model = tiny(name)
    inputs = batch(mixed_samples(model))
    differs = False
    for cell in (1.7, 3.1, 5.0):
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


@families
@pytest.mark.parametrize("fields", [{}, {"name": "uniform"}], ids=str)
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
        assert len(kept) == len(newlines) + 2  # and one patch token an image


# ways to call the model


@some
@configs
def test_attention_mask_may_be_left_out(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    if refused(model, attention, chosen):
        return
    inputs = sample(model, images=2)
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    forced = forced_tokens(1)
    with_mask, without = (run_pruned(model, given, chosen, forced) for given in (inputs, bare))
    for ours, theirs in zip(without[:3], with_mask[:3], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@families
@configs
def test_generate_agrees_with_manual_decoding(name: str, chosen: PruningConfig) -> None:
    model = tiny(name)
    for inputs in (sample(model, images=2), batch(mixed_samples(model))):
        with prune(model, chosen):
            output = generated(model, inputs)
        forced = output.sequences[:, -4:]
        _, logits, decoded, _ = run_pruned(model, inputs, chosen, forced[:, :-1])
        # padding has positions here and none in generate(): the same up to rounding in the rotary embedding
        torch.testing.assert_close(logits[:, -1], output.logits[0], **ROTATED)
        torch.testing.assert_close(decoded, torch.stack(output.logits[1:], 1), **ROTATED)
        assert torch.equal(best(torch.cat([logits[:, -1:], decoded], 1)), forced)


@some
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_decoding_equals_a_longer_prefill(name: str, attention: str, positions: str) -> None:
    model = tiny(name, attention)
    inputs = batch([sample(model, images=1, seed=1, size=1), sample(model, images=2, seed=2)])
    chosen = config(positions=positions)
    forced = forced_tokens(2, steps=5)
    whole = run_pruned(model, extended(inputs, forced), chosen)[1][:, -5:]
    torch.testing.assert_close(run_pruned(model, inputs, chosen, forced)[2], whole, **EXACT)
    with prune(model, chosen):  # several tokens at once
        output = model(**inputs)
        output = model(input_ids=forced[:, :2], **{CACHE: output[CACHE]})
        torch.testing.assert_close(output.logits, whole[:, :2], **EXACT)
        output = model(input_ids=forced[:, 2:], **{CACHE: output[CACHE]})
        torch.testing.assert_close(output.logits, whole[:, 2:], **EXACT)


@some
@configs
def test_generating_without_cache_gives_the_same(name: str, attention: str, chosen: PruningConfig) -> None:
    model = tiny(name, attention)
    if refused(model, attention, chosen):
        return
    inputs = batch(mixed_samples(model)[:3])
    with prune(model, chosen):
        cached, uncached = generated(model, inputs), generated(model, inputs, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for ours, theirs in zip(uncached.logits, cached.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@families
@configs
def test_copies_of_a_row_are_pruned_alike(name: str, chosen: PruningConfig) -> None:
    """Beams and several sequences: generate() copies rows after (or before) it has encoded the images."""
    model = tiny(name)
    inputs = batch(copied_samples(model))
    with prune(model, chosen) as pruner:
        greedy, single = generated(model, inputs), pruner.report
        sampled = generated(model, inputs, do_sample=True, num_return_sequences=3)
        copies = pruner.report
        beams = generated(model, inputs, num_beams=2, num_return_sequences=2)
        # an end token that cannot come, for versions that want one
        options = {"prompt_lookup_num_tokens": 3, "eos_token_id": IMAGE_TOKEN}
        lookup = [generated(model, alone, **options) for alone in mixed_samples(model)[:2]]
        bare = [generated(model, alone) for alone in mixed_samples(model)[:2]]
    assert beams.sequences.shape == (6, inputs["input_ids"].shape[1] + 4)
    for first in range(3):
        torch.testing.assert_close(sampled.logits[0][first::3], greedy.logits[0], **EXACT)
    for row, entry in enumerate(copies):
        assert all(torch.equal(a, b) for a, b in zip(entry.kept, single[row // 3].kept, strict=True))
    for ours, theirs in zip(lookup, bare, strict=True):
        assert torch.equal(ours.sequences, theirs.sequences)


@families
@configs
@pytest.mark.parametrize("guesses", [1, 3])
def test_rejected_guesses_leave_the_cache(name: str, chosen: PruningConfig, guesses: int) -> None:
    """Some versions leave them in layers that have lost tokens; generate() and its mask tell how many count."""
    model = tiny(name)
    inputs = sample(model, images=2)
    forced = forced_tokens(1, steps=4)
    expected = run_pruned(model, inputs, chosen, forced)[2]
    length = inputs["input_ids"].shape[1]
    with prune(model, chosen):
        for with_prompt in (False, True):  # whether the first guesses are read along with the prompt
            wrong = forced.new_full((1, guesses), 9)
            output = model(**extended(inputs, wrong)) if with_prompt else model(**inputs)
            for step in range(0, 4, 2):
                tokens = torch.cat([forced[:, step : step + 2], wrong], 1)
                mask = torch.ones(1, length + step + tokens.shape[1], dtype=torch.long)
                output = model(input_ids=tokens, attention_mask=mask, **{CACHE: output[CACHE]})
                torch.testing.assert_close(output.logits[:, :2], expected[:, step : step + 2], **EXACT)


def test_a_mask_over_what_is_cached_cuts_nothing() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=1)
    forced = forced_tokens(1)
    expected = run_pruned(model, inputs, config(), forced)[2]
    with prune(model, config()):
        output = model(**inputs)
        for step in range(3):
            mask = torch.ones(1, output[CACHE].get_seq_length() + 1)
            output = model(input_ids=forced[:, step : step + 1], attention_mask=mask, **{CACHE: output[CACHE]})
            torch.testing.assert_close(output.logits, expected[:, step : step + 1], **EXACT)


@families
@configs
def test_beam_search_scores_its_own_sequences(name: str, chosen: PruningConfig) -> None:
    """Beams swap caches at every step: each sequence's score must be what teacher forcing gives it."""
    model = tiny(name)
    inputs = batch(copied_samples(model))
    with prune(model, chosen):
        beams = generated(model, inputs, num_beams=3, num_return_sequences=2, output_scores=True, length_penalty=0.0)
    for copy in range(2):
        forced = beams.sequences[copy::2, -4:]
        _, logits, decoded, _ = run_pruned(model, inputs, chosen, forced[:, :-1])
        logs = torch.cat([logits[:, -1:], decoded], 1).log_softmax(-1)
        total = logs.gather(-1, forced[..., None]).sum((1, 2))
        torch.testing.assert_close(beams.sequences_scores[copy::2], total, atol=1e-4, rtol=0)


def test_a_text_prompt_passes_through() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=0)
    stock = generated(model, inputs)
    with prune(model, config()) as pruner:
        generated(model, sample(model, images=1))
        pruned = generated(model, inputs)
    assert pruner.report == []
    assert torch.equal(stock.sequences, pruned.sequences)
    assert all(torch.equal(a, b) for a, b in zip(stock.logits, pruned.logits, strict=True))


# positions and recycled tokens


class Seen:
    """What each layer of the language model was given: rotary angles of new tokens, masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.forwards: list[list[dict]] = []
        text = model.model.language_model
        self.handles = [
            text.layers[number].self_attn.register_forward_pre_hook(self._note(number), with_kwargs=True)
            for number in range(LAYERS)
        ]
        self.rotary = text.rotary_emb

    def _note(self, number: int) -> Any:
        def note(_: Any, args: tuple, kwargs: dict) -> None:
            if number == 0:
                self.forwards.append([])
            self.forwards[-1].append(kwargs)

        return note

    def assert_positions(self, forward: int, layer: int, row: int, positions: list[int]) -> None:
        cos, sin = self.forwards[forward][layer]["position_embeddings"]
        row = row if len(cos) > 1 else 0
        expected = self.rotary(cos, torch.tensor([positions]))
        torch.testing.assert_close(cos[row, -len(positions) :], expected[0][0])
        torch.testing.assert_close(sin[row, -len(positions) :], expected[1][0])


@families
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("by_generate", [False, True], ids=["forward", "generate"])
def test_positions_that_layers_see(name: str, positions: str, schedule: tuple, by_generate: bool) -> None:
    model = tiny(name)
    samples = mixed_samples(model)
    inputs = batch(samples)
    seen = Seen(model)
    with prune(model, config(schedule, positions=positions)) as pruner:
        if by_generate:
            generated(model, inputs)
        else:
            cache = model(**inputs)[CACHE]
            for token in forced_tokens(len(samples)).T:
                cache = model(input_ids=token[:, None], **{CACHE: cache})[CACHE]
    for handle in seen.handles:
        handle.remove()
    for row, alone in enumerate(samples):
        visual = is_visual(alone)[0]
        length = len(visual)
        # a plain forward counts padding as positions, generate() does not; `compact` counts from 0 if it cuts
        padding = 0 if by_generate else inputs["input_ids"].shape[1] - length
        number = {place: place + padding for place in range(length)}
        following = length + padding
        if positions == "compact" and schedule[0][0] == 0:
            kept = set(pruner.report[row].kept[0].tolist())
            left = [place for place in range(length) if not visual[place] or place in kept]
            number = {place: new for new, place in enumerate(left)}
            following = len(left)
        for layer in range(LAYERS):
            left = list(range(length))
            for (start, _), kept_places in zip(schedule, pruner.report[row].kept, strict=True):
                if start <= layer:
                    left = [place for place in range(length) if not visual[place] or place in set(kept_places.tolist())]
            seen.assert_positions(0, layer, row, [number[place] for place in left])
            for step in range(3):
                seen.assert_positions(1 + step, layer, row, [following + step])


@families
@backends
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_recycling_from_pixels_to_logits(name: str, attention: str, positions: str, weight: float) -> None:
    """Everything recomputed: map, exact count, merging, positions, and w · log n on recycled keys in every layer."""
    model = tiny(name, attention)
    samples = [sample(model, images=1, seed=1, size=1), sample(model, images=2, seed=2)]
    forced = forced_tokens(2)
    cell = 2.5
    chosen = config(recycling_cell=cell, recycling_weight=weight, positions=positions)
    if refused(model, attention, chosen):
        return
    hidden, _, decoded, report = run_pruned(model, batch(samples), chosen, forced)

    base, text = model.model, model.model.language_model
    for row, inputs in enumerate(samples):
        visual = is_visual(inputs)[0]
        length = len(visual)
        new = list(range(length, length + forced.shape[1]))
        states = text.embed_tokens(torch.cat([inputs["input_ids"][0], forced[row]]))
        sizes = torch.ones(len(states))
        places = visual.nonzero()[:, 0].tolist()
        kept: list[list[int]] = [[] for _ in chosen.schedule]
        vision = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
        layouts = tokens_of(model, inputs)
        maps = vision_maps(model, inputs, threshold=1.0, weight=0.5)
        for features, values, tokens in zip(
            base.get_image_features(**vision).pooler_output, maps, layouts, strict=True
        ):
            own, places = np.array(places[: len(values)]), places[len(values) :]
            states[own] = features
            patch = ~np.isnan(values)
            count = math.floor(chosen.schedule[0].keep_ratio * len(values) + 0.5)
            merged = recycle_exactly(
                features.numpy()[patch], values[patch], grid_places(tokens), cell, count - int((~patch).sum())
            )
            for token, feature, _, size in merged:
                states[own[patch][token]] = torch.from_numpy(feature)
                sizes[own[patch][token]] = size
            left = {token: value for token, _, value, _ in merged}
            for number, step in enumerate(chosen.schedule):
                if number > 0:
                    count = math.floor(step.keep_ratio * count + 0.5)
                    best = sorted(left, key=lambda token: (-left[token], token))[: count - int((~patch).sum())]
                    left = {token: left[token] for token in best}
                kept[number] += sorted([*own[~patch].tolist(), *own[patch][list(left)].tolist()])
        assert [step.tolist() for step in report[row].kept] == kept
        assert (sizes > 1).any()

        text_places = (~visual).nonzero()[:, 0].tolist()
        alive = [[]] * LAYERS
        for step, left_places in zip(chosen.schedule, kept, strict=True):
            alive[step.layer :] = [sorted(text_places + left_places) + new] * (LAYERS - step.layer)
        numbers = list(range(len(states)))
        if positions == "compact":
            numbers = [alive[0].index(place) if place in alive[0] else -1 for place in numbers]
        expected = decoder(text, states, numbers, weight * sizes.log(), alive)[-len(new) - 1 :]
        torch.testing.assert_close(hidden[row, -1], expected[0], **EXACT)
        torch.testing.assert_close(decoded[row], model.lm_head(expected[1:]), **EXACT)


# refusals


def stock(model: PreTrainedModel, inputs: dict) -> torch.Tensor:
    return model(**inputs, output_hidden_states=True).logits


def test_nested_blocks_are_refused() -> None:
    model = tiny("llava_clip")
    inputs = sample(model)
    logits = stock(model, inputs)
    before = snapshot(model)
    with prune(model, config()):
        inside = snapshot(model)
        with pytest.raises(FlowpruneError, match="leave the outer prune"), prune(model, config()):
            pass
        assert snapshot(model) == inside
    assert_restored(model, inputs, before, logits)
    with prune(model, config()):  # and again, one after the other
        pass


def static_cache(model: PreTrainedModel, inputs: dict) -> None:
    model(**inputs, **{CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=400)})


def static_generate(model: PreTrainedModel, inputs: dict) -> None:
    try:
        model.generate(**inputs, cache_implementation="static", max_new_tokens=2)
    finally:
        vars(model).pop("_cache", None)  # older versions leave it to the next call, which trips over an empty one


def second_turn(model: PreTrainedModel, inputs: dict) -> None:
    model(**inputs, **{CACHE: model(**inputs)[CACHE]})


def later_image(model: PreTrainedModel, inputs: dict) -> None:
    text = sample(model, images=0)
    cache = model(**text)[CACHE]
    model(**inputs | {"attention_mask": None, CACHE: cache})


def ready_mask(model: PreTrainedModel, inputs: dict) -> None:
    length = inputs["input_ids"].shape[1]
    model(**inputs | {"attention_mask": torch.ones(1, 1, length, length).tril().bool()})


def chunks(model: PreTrainedModel, inputs: dict) -> None:
    model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=40)


def embeddings_only(model: PreTrainedModel, inputs: dict) -> None:
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    model(**{key: value for key, value in inputs.items() if key != "input_ids"}, inputs_embeds=embeds)


def unseen_encoding(model: PreTrainedModel, inputs: dict) -> None:
    """Features that were encoded outside of the block: their maps were never seen."""
    vision = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    features = type(model.model).get_image_features(model.model, **vision)
    model(input_ids=inputs["input_ids"], mm_encoder_outputs={"image": features})


needs_encoding_first = pytest.mark.skipif(
    not ENCODES_FIRST, reason="this transformers takes no encoded images, and reads none in chunks"
)


@pytest.mark.parametrize("name", ["llava_siglip", "llava_onevision"])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (static_cache, "StaticCache .* leave cache_implementation unset"),
        (static_generate, "cache_implementation|attention mask"),
        (second_turn, "start with an empty cache"),
        (later_image, "start with an empty cache"),
        (ready_mask, "pass the 2-D padding mask"),
        pytest.param(chunks, "placeholders|empty cache", marks=needs_encoding_first),
        (embeddings_only, "pass input_ids"),
        pytest.param(unseen_encoding, "placeholders", marks=needs_encoding_first),
    ],
)
def test_refused_calls(name: str, call: Any, message: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    logits = stock(model, inputs)
    before = snapshot(model)
    chosen = config(recycling_cell=3.0)
    expected = run_pruned(model, inputs, chosen)[1]
    with prune(model, chosen):
        with pytest.raises(FlowpruneError, match=message) as error:
            call(model, inputs)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)
        assert torch.equal(model(**inputs).logits, expected)  # the block goes on
    assert_restored(model, inputs, before, logits)
    with pytest.raises(FlowpruneError), prune(model, chosen):
        call(model, inputs)
    assert_restored(model, inputs, before, logits)


@families
def test_placeholders_that_mismatch_are_refused(name: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=2)
    logits = stock(model, inputs)
    before = snapshot(model)
    fewer = {key: value.clone() for key, value in inputs.items()}
    fewer["input_ids"][0, is_visual(inputs)[0].nonzero()[0]] = 11
    with pytest.raises(ValueError), prune(model, config()):
        model(**fewer)
    assert_restored(model, inputs, before, logits)


def test_images_that_lie_in_two_prompts_are_refused() -> None:
    """As where generate() copies the images of a prompt one by one: transformers 5.0 and 5.5."""
    model = tiny("llava_onevision")
    one, two = (sample(model, images=1, seed=1, size=size) for size in (0, 1))
    inputs = batch([one, two])
    for key in ("pixel_values", "image_sizes"):
        inputs[key] = inputs[key].flip(0)
    with prune(model, config()) as pruner:
        with pytest.raises(FlowpruneError, match="lie in two prompts"):
            model(**inputs)
        model(**one)
        if not ENCODES_FIRST:
            with pytest.raises(FlowpruneError, match=r"lie in two prompts.* copy \(num_beams"):
                generated(model, sample(model, images=2), num_beams=2)
        assert len(pruner.report) == 1


def test_videos_are_refused() -> None:
    model = tiny("llava_onevision")
    inputs = sample(model, images=0) | {"pixel_values_videos": torch.zeros(1, 2, 3, 32, 32)}
    with pytest.raises(FlowpruneError, match="Videos"), prune(model, config()):
        model(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": [(0, 0.5), (LAYERS, 0.5)]}, rf"schedule\.1\.layer is {LAYERS}.* 0 to {LAYERS - 1}"),
        ({"vision_layer": -4}, "vision_layer -4"),
        ({"image_mean": None}, "image_mean and image_std are missing"),
        (
            {"model": {"id": "x", "architecture": "Other", "layers": 5}},
            "architecture is Other, .* LlavaForConditionalGeneration",
        ),
    ],
    ids=["layer", "vision layer", "image mean", "architecture"],
)
def test_configs_that_do_not_fit_are_refused(fields: dict, message: str) -> None:
    model = tiny("llava_clip")
    before = snapshot(model)
    with pytest.raises(FlowpruneError, match=message) as error, prune(model, config(**fields)):
        pass
    assert "\n" not in str(error.value)
    assert snapshot(model) == before


def test_cells_that_do_not_fit_are_refused() -> None:
    model = tiny("llava_clip")
    inputs = sample(model)
    logits = stock(model, inputs)
    before = snapshot(model)
    too_small = config([(0, 0.5)], recycling_cell=1.0)
    with pytest.raises(FlowpruneError, match="recycling_cell 1 makes 64 cells"), prune(model, too_small):
        model(**inputs)
    assert_restored(model, inputs, before, logits)


def test_the_report_is_empty_before_a_prompt() -> None:
    with prune(tiny("llava_clip"), config()) as pruner:
        assert pruner.report == []
