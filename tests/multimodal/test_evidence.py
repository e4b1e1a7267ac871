"""Evidence: what requests are answered with, against what the stock model computes when asked for its attention."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import (
    ClassAttention,
    ContextRelevance,
    LanguageAttention,
    LanguageVectors,
    PatchEntropy,
    ReceivedAttention,
    Request,
    TextEmbeddings,
    TextStates,
    VisionEvidence,
    VisionFeatures,
    VisionKeys,
    VisionValues,
    VisualEmbeddings,
    joined,
    stacked,
    token_evidence,
)
from multimodal.families import modules_of
from multimodal.methods import Method, VisualTokens
from multimodal.runtime.group import Group, grouped, members_of
from multimodal.runtime.outcome import Outcome
from multimodal.runtime.placed import place
from multimodal.runtime.watch import watch_vision
from multimodal.testing.contracts import EXACT, families, mixed_samples, rotated
from multimodal.testing.oracles import (
    MEAN,
    STD,
    config,
    entropy,
    hooked,
    relevance,
    text_layers,
    tiny,
    tokens_of,
    vision_attention,
)
from multimodal.testing.tiny_models import CACHE, FAMILIES, batch, build, is_visual, sample


class Asking(Method):
    """Notes what it is answered, and keeps the first tokens."""

    name: Literal["test_asking"] = "test_asking"
    requests: tuple[Any, ...] = ()

    @property
    def evidence(self) -> Sequence[Request]:
        return self.requests

    def score(self, tokens: VisualTokens) -> Tensor:
        SEEN.append((tokens.layer, tokens.index, [tokens.evidence(request) for request in self.requests]))
        return -tokens.index.float()


SEEN: list[tuple[int, Tensor, list[Tensor]]] = []


def answers(model: PreTrainedModel, inputs: dict, requests: Sequence[Request], schedule: Sequence, **told: Any) -> list:
    """What a method was answered at each step of a prefill."""
    SEEN.clear()
    config = PruningConfig(
        method=Asking(requests=tuple(requests)),
        schedule=[{"layer": layer, "keep_ratio": ratio} for layer, ratio in schedule],
        image_mean=MEAN,
        image_std=STD,
    )
    with prune(model, config):
        model(**inputs, **told)
    return list(SEEN)


# the vision tower


@contextmanager
def watched(model: PreTrainedModel, requests: Sequence) -> Iterator[list[VisionEvidence]]:
    found: list[VisionEvidence] = []
    with watch_vision(modules_of(model), requests, (MEAN, STD), lambda *seen: found.extend(seen[-1])):
        yield found


@families
def test_statistics_of_the_tower_are_those_of_its_attention(name: str) -> None:
    model, own = tiny(name), FAMILIES[name]
    inputs = sample(model, images=2)
    requests = [ReceivedAttention(-1), ContextRelevance(-1, 1.2), ContextRelevance(-1, 0.3, 4.0), PatchEntropy()]
    with watched(model, requests) as found:
        model(**inputs)
    pictures = own.pictures(model, inputs)
    orders = own.tower_order(model, inputs) if own.tower_order else [None] * len(pictures)
    attention, seen = vision_attention(model, inputs), {}
    for evidence in found:
        for request in (ReceivedAttention(-1), ContextRelevance(-1, 1.2), ContextRelevance(-1, 2.0), PatchEntropy()):
            for view, answer in zip(evidence.views, evidence.answer(request), strict=True):
                seen[view, request] = answer.numpy()
    patch = modules_of(model).geometry.patch_size
    for view, (frames, order) in enumerate(zip(pictures, orders, strict=True)):
        images = [frame.permute(1, 2, 0).double().numpy() * STD + MEAN for frame in frames]
        bits = entropy([np.clip(np.rint(image * 255), 0, 255).astype(np.uint8) for image in images], patch).ravel()
        own_bits = seen[view, PatchEntropy()]
        np.testing.assert_allclose(own_bits, bits if order is None else bits[order], atol=1e-5)
        if len(attention) == len(pictures):
            number = len(own_bits)
            expected = attention[view].mean(0)[-number:]
            np.testing.assert_allclose(seen[view, ReceivedAttention(-1)], expected, atol=1e-6)
            for threshold in (1.2, 2.0):
                expected = relevance(attention[view], threshold)[-number:]
                np.testing.assert_allclose(seen[view, ContextRelevance(-1, threshold)], expected, atol=1e-6)


def test_class_tokens_keys_values_and_features() -> None:
    model = tiny("llava_clip")
    inputs = sample(model, images=2)
    module = FAMILIES["llava_clip"].vision_attention(model)
    noted: dict[str, Tensor] = {}
    handles = [
        getattr(module, f"{which}_proj").register_forward_hook(
            lambda _, args, out, which=which: noted.update({which: out})
        )
        for which in "kv"
    ]
    states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    expected = vision_attention(model, inputs)
    for handle in handles:
        handle.remove()
    requests = [ClassAttention(-1), VisionKeys(-1), VisionValues(-1), VisionFeatures(-1), VisionFeatures(-2)]
    [(_, index, found)] = answers(model, inputs, requests, [(0, 0.5)])
    assert torch.equal(index, torch.arange(64).expand(2, -1))
    row, keys, values, last, before = found
    np.testing.assert_allclose(row, np.stack([attention[0, 1:] for attention in expected]), atol=1e-6)
    torch.testing.assert_close(keys, noted["k"][:, 1:], **EXACT)
    torch.testing.assert_close(values, noted["v"][:, 1:], **EXACT)
    torch.testing.assert_close(last, states[-2][:, 1:], **EXACT)  # what feeds the projector
    torch.testing.assert_close(before, states[-3][:, 1:], **EXACT)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "idefics3"])
def test_features_are_packed_as_tokens_are(name: str) -> None:
    """A token's evidence is the mean over its patches, wherever the tower keeps them."""
    model, own = tiny(name), FAMILIES[name]
    inputs = sample(model, images=2)
    with watched(model, [VisionFeatures(-1)]) as found:
        model(**inputs)
    views = {
        view: each for seen in found for view, each in zip(seen.views, seen.answer(VisionFeatures(-1)), strict=True)
    }
    pictures = own.pictures(model, inputs)
    orders = own.tower_order(model, inputs) if own.tower_order else [None] * len(pictures)
    patch, first = modules_of(model).geometry.patch_size, 0
    steps = answers(model, inputs, [VisionFeatures(-1)], [(0, 0.5)])
    tokens = [answer for _, _, [own_answer] in steps for answer in own_answer]
    for image in tokens_of(model, inputs):
        patches = [token for token in image if token is not None]
        number = 1 + max(view for token in patches for view, _, _ in token)
        expected = []
        for token in patches:
            parts = []
            for (view, row, column), weight in token.items():
                raster = row * (pictures[first + view][0].shape[2] // patch) + column
                order = orders[first + view]
                place = raster if order is None else list(order).index(raster)
                parts.append(weight * views[first + view][place])
            expected.append(torch.stack(parts).sum(0))
        assert any(
            len(each) == len(expected) and torch.allclose(each, torch.stack(expected), atol=1e-5) for each in tokens
        )
        first += number


def test_a_tower_without_a_class_token_is_refused() -> None:
    model = tiny("llava_siglip")
    with pytest.raises(FlowpruneError, match="no class token"):
        answers(model, sample(model), [ClassAttention(-1)], [(0, 0.5)])


def test_requests_join_into_the_fewest() -> None:
    asked = [ContextRelevance(-1, 3.0), ContextRelevance(-2, 1.0), PatchEntropy(True), ContextRelevance(-1, 0.5)]
    found = joined([*asked, PatchEntropy(), ContextRelevance(-1, 8.0), VisionKeys(-1), VisionKeys(-1)])
    assert found == [ContextRelevance(-1, 0.5, 8.0), ContextRelevance(-2, 1.0), PatchEntropy(), VisionKeys(-1)]
    assert all(any(each.covers(request) for each in found) for request in asked)


def test_stacked_evidence_answers_as_each_alone() -> None:
    model = tiny("llava_onevision")
    requests, parts, first = [ContextRelevance(-1, 0.1, 9.0), PatchEntropy()], [], 0
    for size in range(3):
        with watched(model, requests) as found:
            model(**sample(model, images=1, size=size))
        parts += [each.shifted(first) for each in found]
        first += sum(len(each.views) for each in found)
    together = stacked(parts)
    assert len(together) < len(parts)
    for request in (ContextRelevance(-1, 1.5), PatchEntropy(True)):
        alone = {v: a for each in parts for v, a in zip(each.views, each.answer(request), strict=True)}
        many = {v: a for each in together for v, a in zip(each.views, each.answer(request), strict=True)}
        assert alone.keys() == many.keys()
        assert all(torch.allclose(alone[view], many[view], atol=1e-7) for view in alone)


def test_nothing_of_the_tower_is_kept_through_the_prefill() -> None:
    """Queries, keys and pixels are let go once the evidence is made."""
    import gc
    import weakref

    model = tiny("llava_clip")
    inputs, alive = sample(model), []
    module = FAMILIES["llava_clip"].vision_attention(model)
    handle = module.k_proj.register_forward_hook(lambda _, args, out: alive.append(weakref.ref(out.untyped_storage())))
    counts = []
    layer = text_layers(model)[0].register_forward_pre_hook(
        lambda *_: counts.append((gc.collect(), sum(ref() is not None for ref in alive))[1])
    )
    requests = [ContextRelevance(-1, 1.0), PatchEntropy()]
    answers(model, inputs, requests, [(0, 0.5)])
    handle.remove()
    layer.remove()
    assert counts == [0]


# the language model


@contextmanager
def eager_weights(model: PreTrainedModel, by_head: bool = False) -> Iterator[list[Tensor]]:
    """Attention weights, ``[B, heads, Q, K]`` or their means over heads, of each layer of an eager language model."""
    modules = [m for layer in text_layers(model) for m in layer.modules() if hasattr(m, "q_proj")]
    source, found = sys.modules[type(modules[0]).__module__], []
    eager = source.eager_attention_forward

    def noting(own: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager(own, *args, **kwargs)
        if own in modules:
            found.append(weights if by_head else weights.mean(1))
        return output, weights

    source.eager_attention_forward = noting
    try:
        yield found
    finally:
        source.eager_attention_forward = eager


ATTENDING = ["llava_siglip", "llava_onevision", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma2", "mistral3", "internvl"]


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("rows", ["last", "text"])
def test_language_attention_is_what_the_layer_before_computes(name: str, rows: str) -> None:
    """In every segment, for padded rows, and under windows, two-way blocks and soft caps."""
    model = build(name, "eager")
    inputs = batch(mixed_samples(model))
    schedule = [(2, 0.6), (4, 0.5)]
    with eager_weights(model) as weights:
        steps = answers(model, inputs, [LanguageAttention(rows)], schedule)
    kept = inputs["attention_mask"].bool().numpy()
    visual = is_visual(inputs).numpy()
    images: dict[int, list] = {layer: [] for layer, _ in schedule}
    for layer, index, [answer] in steps:
        for own, values in zip(index, answer, strict=True):
            images[layer].append((own, values))
    before = weights[1]  # of a layer that sees the whole prompt
    firsts = [row.nonzero()[0] for row in visual]
    for row, places in enumerate(firsts):
        if not len(places):
            continue
        expected = before[row, -1, places].numpy() if rows == "last" else None
        if rows == "text":
            text = np.flatnonzero(kept[row] & ~visual[row])
            expected = before[row][text][:, places][-1].numpy()
        flat = np.concatenate([values[-1].numpy() if rows == "text" else values.numpy() for _, values in images[2]])
        patches = [value for value in expected if np.isclose(flat, value, atol=1e-6).any()]
        assert len(patches) >= 0.9 * len(expected)  # newline tokens are never asked about
    after = weights[3]  # of a layer whose keys are what the first step has left
    flat = np.concatenate([values[-1].numpy() if rows == "text" else values.numpy() for _, values in images[4]])
    last = after[:, -1].flatten().numpy()
    assert all(np.isclose(last, value, atol=1e-6).any() for value in flat)


@pytest.mark.parametrize("name", ATTENDING)
def test_fastv_keeps_what_the_stock_model_looks_at(name: str) -> None:
    """One step: the top of the last row of the unpruned model's attention in the layer before."""
    model = build(name, "eager")
    inputs = sample(model, images=1, text=8)
    newlines = {place for place, token in enumerate(tokens_of(model, inputs)[0]) if token is None}
    places = is_visual(inputs)[0].nonzero()[:, 0].tolist()
    if len(tokens_of(model, inputs)) > 1:
        newlines = set()
    with eager_weights(model) as weights:
        model(**inputs)
    for layer in (2, 4):
        config = PruningConfig(method={"name": "fastv"}, schedule=[{"layer": layer, "keep_ratio": 0.4}])
        with prune(model, config) as pruner:
            model(**inputs)
        row = weights[layer - 1][0, -1]
        kept, count = pruner.report[0].kept[0].tolist(), len(pruner.report[0].kept[0])
        if len(tokens_of(model, inputs)) == 1:
            order = sorted(range(len(places)), key=lambda n: (n not in newlines, -float(row[places[n]]), n))
            assert kept == sorted(places[n] for n in order[:count])
        assert min(row[kept].tolist()) >= 0 and count < len(places)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "fake_flash"])
def test_fastv_needs_no_backend_that_tells_its_weights(attention: str) -> None:
    kept = []
    for backend in ("eager", attention):
        model = tiny("llava_siglip", backend)
        config = PruningConfig(
            method={"name": "fastv"}, schedule=[{"layer": 2, "keep_ratio": 0.5}, {"layer": 4, "keep_ratio": 0.3}]
        )
        with prune(model, config) as pruner:
            model(**batch(mixed_samples(model)))
        kept.append([[step.tolist() for step in entry.kept] for entry in pruner.report])
    assert kept[0] == kept[1]


def test_fastv_reads_a_later_turn_over_the_whole_conversation() -> None:
    model = build("llava_siglip", "eager")
    first, second = sample(model, images=1, seed=1), sample(model, images=1, seed=2)
    config = PruningConfig(
        method={"name": "fastv"}, schedule=[{"layer": 1, "keep_ratio": 1.0}, {"layer": 2, "keep_ratio": 0.3}]
    )
    with prune(model, config) as pruner:
        cache = model(**first)[CACHE]
        with eager_weights(model) as weights:
            model(**second | {"attention_mask": None, CACHE: cache})
        [entry] = pruner.report
    length = first["input_ids"].shape[1]
    places = is_visual(second)[0].nonzero()[:, 0]
    row = weights[1][0, -1][-second["input_ids"].shape[1] :][places]
    expected = places[row.topk(len(entry.kept[1])).indices].sort().values + length
    assert entry.kept[1].tolist() == expected.tolist()


def test_fastv_begins_inside_the_language_model() -> None:
    config = PruningConfig(method={"name": "fastv"}, schedule=[{"layer": 0, "keep_ratio": 0.5}])
    message = r"schedule\.0\.layer is 0, but fastv reads .* choose one of 1 to 4"
    with pytest.raises(FlowpruneError, match=message), prune(tiny("llava_clip"), config):
        pass


def test_text_embeddings_are_those_of_the_prompt() -> None:
    model = tiny("llava_clip")
    samples = mixed_samples(model)
    [(_, _, [found])] = answers(model, batch(samples), [TextEmbeddings()], [(0, 0.5)])
    table = model.get_input_embeddings()
    rows = [samples[row] for row in (0, 1, 1, 3)]  # one image, two, one
    for own, inputs in zip(found, rows, strict=True):
        ids = inputs["input_ids"][0][~is_visual(inputs)[0]]
        assert torch.equal(own[-len(ids) :], table(ids)) and (own[: -len(ids)] == 0).all()


# what later layers would see, and what earlier ones made


class Layers(NamedTuple):
    """What the layers of an eager language model were given and compared, by layer.

    Args:
        weights: head-mean attention ``[B, Q, K]``.
        vectors: queries, keys and values ``[B, heads, L, d]``.
        hidden: what reached each layer ``[B, L, C]``.
        places: index, in the padded unpruned prompt, of what each row of the sequence was ``[L]``, −1 where padded.
    """

    weights: list[Tensor]
    vectors: list[dict[str, Tensor]]
    hidden: list[Tensor]
    places: list[np.ndarray]


def seen_by_layers(model: PreTrainedModel, inputs: dict, schedule: Sequence, layer: int, **fields: Any) -> Layers:
    """What a model shows that is pruned by some steps only (the stock model, if by none), places those at a layer."""
    modules = [m for each in text_layers(model) for m in each.modules() if hasattr(m, "q_proj")]
    source, vectors, hidden = sys.modules[type(modules[0]).__module__], [], []
    eager = source.eager_attention_forward

    def noting(own: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if own in modules:
            vectors.append({"queries": query, "keys": key, "values": value})
        return eager(own, query, key, value, *args, **kwargs)

    def run() -> None:
        handles = [
            each.register_forward_pre_hook(lambda _, args: hidden.append(args[0])) for each in text_layers(model)
        ]
        with hooked(handles):
            model(**inputs)

    valid, visual = inputs["attention_mask"].bool().numpy(), is_visual(inputs).numpy()
    left = valid.copy()
    source.eager_attention_forward = noting
    try:
        with eager_weights(model) as weights:
            if schedule:
                steps = [{"layer": number, "keep_ratio": ratio} for number, ratio in schedule]
                with prune(model, PruningConfig(method=Asking(), schedule=steps, **fields)) as pruner:
                    run()
                for row, entry in enumerate(pruner.report):
                    left[row] &= ~visual[row]
                    left[row, entry.kept[-1].numpy() + int((~valid[row]).sum())] = True
            else:
                run()
    finally:
        source.eager_attention_forward = eager
    width = weights[layer].shape[1] if schedule else valid.shape[1]
    places = [np.flatnonzero(row) for row in left]
    if not schedule:
        return Layers(weights, vectors, hidden, [np.where(row, np.arange(width), -1) for row in valid])
    return Layers(weights, vectors, hidden, [np.pad(row, (width - len(row), 0), constant_values=-1) for row in places])


class Asked(NamedTuple):
    """What a method was answered at a step about one image.

    Args:
        row: of the batch.
        places: of its tokens in the padded unpruned prompt ``[n]``.
        answers: to each request.
    """

    row: int
    places: np.ndarray
    answers: list[Tensor]


def groups_of(outcome: Outcome) -> list[Group]:
    """A prompt's images by layout."""
    members = members_of(outcome.prompt, outcome.config.exact)
    return grouped(outcome.prompt, members, place(outcome.prompt, members, torch.device("cpu")).tables)


def asked(model: PreTrainedModel, inputs: dict, requests: Sequence, schedule: Sequence, **fields: Any) -> dict:
    """For each step's layer, what was answered about each image."""
    SEEN.clear()
    steps = [{"layer": layer, "keep_ratio": ratio} for layer, ratio in schedule]
    config = PruningConfig(method=Asking(requests=tuple(requests)), schedule=steps, **fields)
    with prune(model, config) as pruner:
        model(**inputs)
        groups = groups_of(pruner.outcome)  # which images go together
    found: dict[int, list[Asked]] = {layer: [] for layer, _ in schedule}
    for number, (layer, index, answers) in enumerate(SEEN):
        group = groups[number % len(groups)]
        for image, row in enumerate(group.rows.tolist()):
            places = group.table[image][index[image]].numpy()
            found[layer].append(Asked(row, places, [answer[image] for answer in answers]))
    return found


def text_places(inputs: dict, row: int) -> np.ndarray:
    return (inputs["attention_mask"].bool() & ~is_visual(inputs))[row].nonzero()[:, 0].numpy()


def at(places: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Where tokens of the unpruned prompt stand in a sequence."""
    return [int(np.flatnonzero(places == place)[0]) for place in wanted]


def rows_of(inputs: dict, row: int, rows: str) -> np.ndarray:
    text = text_places(inputs, row)
    last = np.flatnonzero(inputs["attention_mask"][row].bool().numpy())[-1:]
    return text if rows == "text" else last


def assert_rows(found: Tensor, expected: Tensor) -> None:
    """Padded on the left with zeros."""
    assert len(found) >= len(expected)
    torch.testing.assert_close(found[len(found) - len(expected) :], expected, **EXACT)
    assert (found[: len(found) - len(expected)] == 0).all()


def assert_attention(inputs: dict, image: Asked, answer: Tensor, rows: str, seen: Layers, layer: int) -> None:
    own = seen.places[image.row]
    queries, keys = at(own, rows_of(inputs, image.row, rows)), at(own, image.places)
    expected = seen.weights[layer][image.row][queries][:, -len(own) :][:, keys]
    if rows == "last":
        torch.testing.assert_close(answer, expected[0], **EXACT)
    else:
        assert_rows(answer, expected)


SUCCESSION = [(2, 0.6), (3, 0.5)]


@pytest.mark.parametrize(("name", "shape"), rotated(["alone", "batch"]))
def test_language_attention_is_what_the_next_layer_would_compute(name: str, shape: str) -> None:
    """Of two steps in succession, of which one layer is the next of the first and the one before the second."""
    model = build(name, "eager")
    inputs = sample(model, images=1, seed=1) if shape == "alone" else batch(mixed_samples(model))
    requests = [LanguageAttention(rows, layer) for rows in ("last", "text") for layer in ("next", "before")]
    found = asked(model, inputs, requests, SUCCESSION)
    for number, (layer, _) in enumerate(SUCCESSION):
        seen = seen_by_layers(model, inputs, SUCCESSION[:number], layer)
        assert len(found[layer]) >= (1 if shape == "alone" else 3)
        for image in found[layer]:
            for request, answer in zip(requests, image.answers, strict=True):
                which = layer - (request.layer == "before")
                assert_attention(inputs, image, answer, request.rows, seen, which)


@pytest.mark.parametrize("attention", ["sdpa", "fake_flash"])
def test_the_next_layer_needs_no_backend_that_tells_its_weights(attention: str) -> None:
    requests, answers = [LanguageAttention("text", "next"), LanguageVectors("keys")], []
    for backend in ("eager", attention):
        model = tiny("llava_siglip", backend)
        answers.append(asked(model, batch(mixed_samples(model)), requests, SUCCESSION))
    for layer, _ in SUCCESSION:
        for ours, theirs in zip(*(found[layer] for found in answers), strict=True):
            for one, other in zip(ours.answers, theirs.answers, strict=True):
                torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("name", ["llava_siglip", "gemma3", "qwen2_vl"])
def test_the_next_layer_weighs_merged_tokens(name: str) -> None:
    model = build(name, "eager")
    inputs, schedule = batch(mixed_samples(model)), [(2, 0.6), (4, 0.5)]
    fields = {"merging": {"rule": "nearest", "weight": 1.0}}
    found = asked(model, inputs, [LanguageAttention("last", "next")], schedule, **fields)
    seen, plain = (seen_by_layers(model, inputs, schedule[:1], 4, **each) for each in (fields, {}))
    for image in found[4]:
        assert_attention(inputs, image, image.answers[0], "last", seen, 4)
    assert (seen.weights[4] - plain.weights[4]).abs().max() > 1e-3  # the test has teeth


@pytest.mark.parametrize("name", [name for name, own in FAMILIES.items() if "chat" not in own.gaps])
@pytest.mark.parametrize("earlier", [[(2, 0.5)], [(1, 0.5)]], ids=["same steps", "other steps"])
def test_the_next_layer_counts_this_prompt_alone_in_a_conversation(name: str, earlier: list) -> None:
    """As it would attend to this prompt: the softmax over its own tokens, at the places that they have."""
    model = build(name, "eager")
    later, schedule = sample(model, images=1, text=4, seed=2, size=1), [(2, 0.5)]
    deep = getattr(modules_of(model).geometry, "deepstack_layers", 0)
    if earlier[0][0] < deep:
        earlier = [(3, 0.5)]

    def second_turn(schedule: Sequence, requests: tuple = ()) -> Any:
        with prune(model, config(earlier, name="uniform")):
            cache = model(**sample(model, images=1, text=4, seed=1))[CACHE]
        inputs, method = later | {"attention_mask": None, CACHE: cache}, Asking(requests=requests)
        steps = [{"layer": layer, "keep_ratio": ratio} for layer, ratio in schedule]
        SEEN.clear()
        chosen = PruningConfig(method=method, schedule=steps)
        with eager_weights(model, by_head=True) as weights, prune(model, chosen) as pruner:
            logits = model(**inputs).logits
        return list(SEEN), weights, logits, groups_of(pruner.outcome)

    requests = tuple(LanguageAttention(rows, "next") for rows in ("last", "text"))
    weights = second_turn([(2, 1.0)])[1][2][0, ..., -later["input_ids"].shape[1] :]
    expected = (weights / weights.sum(-1, keepdim=True)).mean(0)
    seen, _, logits, groups = second_turn(schedule, requests)
    for (_, index, (last, text)), group in zip(seen, groups, strict=True):
        for image, own in enumerate(group.table.gather(1, index)):
            torch.testing.assert_close(last[image], expected[-1, own], **EXACT)
            torch.testing.assert_close(text[image], expected[~is_visual(later)[0]][:, own], **EXACT)
    torch.testing.assert_close(logits, second_turn(schedule)[2], **EXACT)  # looking changes nothing


@families
def test_language_vectors_are_those_of_the_layer_before(name: str) -> None:
    model = build(name, "eager")
    inputs, schedule = batch(mixed_samples(model)), [(2, 0.6), (4, 0.5)]
    requests = [
        LanguageVectors(kind, rows) for kind in ("queries", "keys", "values") for rows in ("visual", "last", "text")
    ]
    found = asked(model, inputs, [*requests, TextStates(), TextEmbeddings()], schedule)
    table = model.get_input_embeddings()
    for number, (layer, _) in enumerate(schedule):
        seen = seen_by_layers(model, inputs, schedule[:number], layer)
        for image in found[layer]:
            *vectors, states, embeddings = image.answers
            own = seen.places[image.row]
            for request, answer in zip(requests, vectors, strict=True):
                which = image.places if request.rows == "visual" else rows_of(inputs, image.row, request.rows)
                expected = seen.vectors[layer - 1][request.kind][image.row].transpose(0, 1)[at(own, which)]
                assert_rows(answer, expected)
            text = text_places(inputs, image.row)
            assert_rows(states, seen.hidden[layer][image.row][at(own, text)])
            assert embeddings.shape == states.shape
            if name.startswith("llava"):
                assert_rows(embeddings, table(inputs["input_ids"][image.row, text]))


def test_text_states_before_the_language_model_are_embeddings() -> None:
    model = tiny("llava_clip")
    found = asked(model, batch(mixed_samples(model)), [TextStates(), TextEmbeddings()], [(0, 0.5)])
    for image in found[0]:
        assert torch.equal(*image.answers)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("layer", ["before", "next"])
def test_language_attention_head_by_head(name: str, layer: Literal["before", "next"]) -> None:
    model = build(name, "eager")
    inputs = batch(mixed_samples(model))
    requests = [LanguageAttention(rows, layer, "each") for rows in ("last", "text")]
    found = asked(model, inputs, requests, [(2, 0.6)])[2]
    with eager_weights(model, by_head=True) as weights:
        model(**inputs)
    for image in found:
        own = weights[2 - (layer == "before")][image.row][:, :, image.places]
        last, text = (own[:, rows_of(inputs, image.row, rows)] for rows in ("last", "text"))
        torch.testing.assert_close(image.answers[0], last[:, 0], **EXACT)
        for head, expected in zip(image.answers[1], text, strict=True):
            assert_rows(head, expected)


@pytest.mark.parametrize("name", ["llava_clip_full", "llava_onevision", "qwen3_vl"])
def test_visual_embeddings_are_those_of_all_patches_at_every_step(name: str) -> None:
    model = tiny(name)
    found = asked(model, batch(mixed_samples(model)), [VisualEmbeddings()], [(0, 0.6), (2, 0.5), (4, 0.5)])
    before = []

    class Embedded(Asking):
        name: Literal["test_embedded"] = "test_embedded"

        def score(self, tokens: VisualTokens) -> Tensor:
            before.extend(tokens.features)
            return super().score(tokens)

    with prune(model, PruningConfig(method=Embedded(), schedule=[{"layer": 0, "keep_ratio": 0.5}])):
        model(**batch(mixed_samples(model)))
    del Method.registry["test_embedded"]
    for images in found.values():
        assert all(torch.equal(own.answers[0], each) for own, each in zip(images, before, strict=True))
        assert len(images) == len(before) >= 3


# greedy on features


def diverse(features: np.ndarray, count: int) -> list[int]:
    """Max–min diversity, by loops."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distance = 1 - unit @ unit.T
    others = distance + np.diag(np.full(len(unit), np.inf))
    chosen = [int(others.min(1).argmax())]
    while len(chosen) < count:
        nearest = distance[:, chosen].min(1)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)


@pytest.mark.parametrize("name", ["llava_clip", "qwen2_vl", "llava_onevision"])
def test_divprune_equals_the_loops(name: str) -> None:
    model = tiny(name)
    inputs = sample(model, images=1)
    noted: list[Tensor] = []

    class Features(Asking):
        name: Literal["test_features"] = "test_features"

        def score(self, tokens: VisualTokens) -> Tensor:
            noted.append(tokens.features[0])
            return super().score(tokens)

    with prune(model, PruningConfig(method=Features(), schedule=[{"layer": 0, "keep_ratio": 0.3}])):
        model(**inputs)
    del Method.registry["test_features"]
    for ratio in (0.05, 0.3, 0.9):
        config = PruningConfig(method={"name": "divprune"}, schedule=[{"layer": 0, "keep_ratio": ratio}])
        with prune(model, config) as pruner:
            model(**inputs)
        tokens = tokens_of(model, inputs)[0]
        places = is_visual(inputs)[0].nonzero()[:, 0].tolist()
        patches = [place for place, token in zip(places, tokens, strict=True) if token is not None]
        newlines = sorted(set(places) - set(patches))
        chosen = diverse(noted[0].double().numpy(), len(pruner.report[0].kept[0]) - len(newlines))
        assert pruner.report[0].kept[0].tolist() == sorted(newlines + [patches[n] for n in chosen])


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(FlowpruneError, match="two methods 'fastv'"):

        class Other(Method):
            name: Literal["fastv"] = "fastv"

    assert Method.registry["fastv"].__name__ == "FastV"


@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_one_layout_go_through_the_packing_code_together(name, monkeypatch):
    """Side by side as channels, each as it would alone; one call a layout."""
    geometry = modules_of(tiny(name)).geometry
    inputs = sample(tiny(name), images=1, size=1)
    layout = geometry.layouts(inputs)[0]  # of one tile, in some families
    generator = torch.Generator().manual_seed(0)
    requests = [PatchEntropy(), VisionKeys(-1)]
    images = [
        [
            VisionEvidence(
                (view,),
                {
                    PatchEntropy(): {"answer": torch.rand(1, patches, generator=generator)},
                    VisionKeys(-1): {"answer": torch.rand(1, patches, 3, generator=generator)},
                },
            )
            for view, patches in enumerate(layout.views)
        ]
        for _ in range(3)
    ]
    together = [each.shifted(len(layout.views) * number) for number, own in enumerate(images) for each in own]
    calls, pack = [], geometry.pack
    monkeypatch.setattr(geometry, "pack", lambda views, layouts: calls.append(len(layouts)) or pack(views, layouts))
    found = token_evidence(geometry, requests, [layout] * 3, together)
    assert calls == [1, 1]
    for number, own in enumerate(images):
        alone = token_evidence(geometry, requests, [layout], own)
        for request in requests:
            torch.testing.assert_close(found[request][number], alone[request][0], atol=0, rtol=0, equal_nan=True)
            assert found[request][number].shape[0] == layout.visual_tokens
