"""Methods that read the language model, and greedy ones, against slow loops: on random tokens, by hand, live."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import LanguageAttention, LanguageVectors, TextEmbeddings, TextStates, VisualEmbeddings
from multimodal.layout import Layout
from multimodal.merging import make_merging
from multimodal.merging.clusters import NEIGHBOURS
from multimodal.methods import Method, VisualTokens, make_method
from multimodal.testing.contracts import EXACT, alone, generated, mixed_samples
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import batch, is_visual, sample

IMAGES, TOKENS, TEXT, WIDTH, HEADS = 3, 24, 6, 8, 4
PADS = (0, 2, 5)  # rows of text that pad each image's prompt


def random_tokens(seed: int = 0, layer: int = 3, left: int | None = None) -> VisualTokens:
    """Tokens whose evidence is of the right shapes; some rows of text pad."""
    generator = torch.Generator().manual_seed(seed)
    left = left or TOKENS
    index = torch.stack([torch.randperm(TOKENS, generator=generator)[:left].sort()[0] for _ in range(IMAGES)])
    valid = torch.stack([torch.arange(TEXT) >= pads for pads in PADS])

    def draw(*shape: int, rows: int | None = None) -> Tensor:
        drawn = torch.randn(IMAGES, *shape, generator=generator)
        mask = valid.view(IMAGES, *[1] * (rows or 0), TEXT, *[1] * (len(shape) - (rows or 0) - 1))
        return drawn if rows is None else drawn * mask

    features = draw(left, WIDTH)
    mass = torch.rand(IMAGES, HEADS, TEXT, 1, generator=generator)  # the rest is on text
    by_head = draw(HEADS, TEXT, left).softmax(-1) * mass * valid[:, None, :, None]
    answers = {
        LanguageAttention("text", heads="each"): by_head,
        LanguageAttention("text"): by_head.mean(1),
        LanguageAttention("last", "next"): draw(left).softmax(-1),
        LanguageVectors("keys", "visual"): draw(left, 2, 4),
        LanguageVectors("keys", "text"): draw(TEXT, 2, 4, rows=0),
        TextStates(): draw(TEXT, WIDTH, rows=0),
        TextEmbeddings(): draw(TEXT, WIDTH, rows=0) * 0.4,
        VisualEmbeddings(): draw(TOKENS, WIDTH),
    }
    return VisualTokens(layer, Layout(((4, 6),)), index, lambda: features, answers.__getitem__)


def numbers(tokens: VisualTokens, image: int, request: Any) -> np.ndarray:
    return tokens.evidence(request)[image].double().numpy()


def first_highest(values: np.ndarray, count: int) -> list[int]:
    return sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def given(features: Tensor, answers: dict, layer: int = 3) -> VisualTokens:
    """One image."""
    index = torch.arange(features.shape[0])[None]
    held = {request: answer[None] for request, answer in answers.items()}
    layout = Layout(((1, features.shape[0]),))
    return VisualTokens(layer, layout, index, lambda: features[None], held.__getitem__)


# pyramiddrop


def test_pyramiddrop_keeps_what_the_next_layer_looks_at() -> None:
    tokens, method = random_tokens(), make_method({"name": "pyramiddrop"})
    for count in range(1, TOKENS + 1):
        for image, kept in enumerate(method.select(tokens, count).tolist()):
            assert kept == sorted(first_highest(numbers(tokens, image, LanguageAttention("last", "next")), count))


# sparsevlm


def sparse_scores(tokens: VisualTokens, image: int, heads: int) -> np.ndarray:
    text, visual = numbers(tokens, image, TextEmbeddings()), numbers(tokens, image, VisualEmbeddings())
    attention = numbers(tokens, image, LanguageAttention("text", heads="each"))
    sees = [row for row in range(len(text)) if attention[:, row].sum() > 0]
    related = np.zeros(len(text))
    for patch in visual:
        weights = np.array([math.exp(patch @ text[row]) for row in sees])
        related[sees] += weights / weights.sum() / len(visual)
    mean = related[sees].mean()
    raters = [row for row in sees if related[row] > mean] or sees
    by_head = attention[:, raters].mean(1)
    chosen = first_highest(by_head.sum(1), heads)
    return by_head[chosen].mean(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("share", "heads"), [(1.0, 4), (0.4375, 2), (0.1, 1)])
def test_sparsevlm_scores_equal_the_loops(share: float, heads: int, seed: int) -> None:
    tokens = random_tokens(seed, left=17)
    method = make_method({"name": "sparsevlm", "heads": share, "recycled": 0.0})
    found = method.score(tokens)
    for image in range(IMAGES):
        np.testing.assert_allclose(found[image], sparse_scores(tokens, image, heads), atol=1e-6)
        kept = method.reduce(tokens, 5)
        assert kept.owner is None and kept.kept[image].tolist() == sorted(first_highest(found[image].numpy(), 5))


def test_text_before_the_image_rates_nothing() -> None:
    """It sees none of it: the raters are those that they would be without it."""
    tokens, method = random_tokens(), make_method({"name": "sparsevlm"})
    hidden = LanguageAttention("text")
    before = tokens.evidence(hidden).clone()
    before[:, -2] = 0  # as if that text token came before the image
    answers = {request: tokens.evidence(request).clone() for request in (TextEmbeddings(), VisualEmbeddings())}
    answers[hidden] = before
    found = method.score(VisualTokens(3, tokens.layout, tokens.index, lambda: tokens.features, answers.__getitem__))
    left = {request: answer[:, [0, 1, 2, 3, 5]] for request, answer in answers.items() if request != VisualEmbeddings()}
    left[VisualEmbeddings()] = answers[VisualEmbeddings()]
    same = method.score(VisualTokens(3, tokens.layout, tokens.index, lambda: tokens.features, left.__getitem__))
    torch.testing.assert_close(found, same)


def test_one_rater_is_left_where_all_are_alike() -> None:
    attention = torch.tensor([[0.2, 0.5, 0.3]]).expand(3, -1)
    answers = {
        TextEmbeddings(): torch.ones(3, 2),
        VisualEmbeddings(): torch.ones(3, 2),
        LanguageAttention("text"): attention,
    }
    found = make_method({"name": "sparsevlm"}).score(given(torch.ones(3, 2), answers))
    torch.testing.assert_close(found, attention[:1])


def sparse_by_hand(scores: np.ndarray, features: np.ndarray, count: int) -> tuple[list[int], list[np.ndarray]]:
    """Version 1: kept tokens and the means of clusters of the best of the others."""
    clusters = pool_size = 0
    for clusters in range(1, count // 2 + 1 if count < len(scores) else 1):
        pool_size = int(0.3 * (len(scores) - count + clusters))
        if pool_size >= clusters and int(0.1 * pool_size) + 1 <= clusters:
            break
    clusters = clusters if pool_size >= clusters else 0
    order = first_highest(scores, len(scores))
    kept, pool = order[: count - clusters], sorted(order[count - clusters :][: pool_size * bool(clusters)])
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1) / features.shape[1] ** 0.5
    density = {t: math.exp(-np.mean(sorted(distance[t, pool])[:NEIGHBOURS] ** np.array(2.0))) for t in pool}
    ranked = sorted(pool, key=lambda token: (-density[token], token))
    peak = {}
    for place, token in enumerate(ranked):
        apart = min((distance[token, other] for other in ranked[:place]), default=max(distance[token, pool]))
        peak[token] = density[token] * apart
    centres = sorted(pool, key=lambda token: (-peak[token], token))[:clusters]
    members: dict[int, list[int]] = {token: [token] for token in [*kept, *centres]}
    for token in pool:
        if token not in centres:
            members[min(sorted(centres), key=lambda centre: distance[token, centre])].append(token)
    stay = sorted(members)
    return stay, [features[members[token]].mean(0) for token in stay]


@pytest.mark.parametrize("seed", range(5))
def test_sparsevlm_recycles_within_its_count(seed: int) -> None:
    tokens, method = random_tokens(seed), make_method({"name": "sparsevlm"})
    merged_somewhere = False
    for count in range(1, TOKENS + 1):
        found = method.reduce(tokens, count)
        merged_somewhere |= found.owner is not None
        assert found.kept.shape == (IMAGES, count)
        for image in range(IMAGES):
            scores = method.score(tokens)[image].double().numpy()
            stay, means = sparse_by_hand(scores, numbers_of(tokens.features, image), count)
            assert found.kept[image].tolist() == stay
            np.testing.assert_allclose(found.apply(tokens.features)[image], np.stack(means), atol=1e-5)
    assert merged_somewhere


def numbers_of(values: Tensor, image: int) -> np.ndarray:
    return values[image].double().numpy()


def test_sparsevlm_recycles_by_the_papers_shares() -> None:
    """576 tokens to 66: 30 % of the dropped, 10 % of them and one more, which are among the 66."""
    method = make_method({"name": "sparsevlm"})
    pool, clusters = method._recycled(576, 66)
    assert (pool, clusters) == (int(0.3 * (510 + clusters)), 16) and clusters == int(0.1 * pool) + 1
    assert method._recycled(576, 10)[1] == 5 and method._recycled(576, 1) == method._recycled(576, 576) == (0, 0)


# dart


def dart_by_hand(
    visual: np.ndarray, text: np.ndarray, visual_norms: np.ndarray, text_norms: np.ndarray, count: int, numbers: tuple
) -> list[int]:
    kept = first_highest(visual_norms, min(numbers[0], count))
    rows = [row for row in first_highest(text_norms, numbers[1]) if text_norms[row] > 0]
    rows += rows[:1] * (numbers[1] - len(rows))
    pivots = [*visual[kept], *text[rows]]
    quotas = [len(part) for part in np.array_split(np.arange(count - len(kept)), len(pivots))]
    for pivot, quota in zip(pivots, quotas, strict=True):
        cosine = unit(visual) @ unit(pivot)
        left = sorted(set(range(len(visual))) - set(kept), key=lambda token: (cosine[token], token))
        kept += left[:quota]
    return sorted(kept)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pivots", [(4, 4), (1, 0), (10, 5), (2, 9)])
def test_dart_equals_the_loops(pivots: tuple, seed: int) -> None:
    """Also where there are fewer text tokens than text pivots: one image has a single one."""
    tokens = random_tokens(seed)
    method = make_method({"name": "dart", "visual_pivots": pivots[0], "text_pivots": pivots[1]})
    norms = [np.abs(tokens.evidence(LanguageVectors("keys", rows)).double().numpy()).sum((-2, -1)) for rows in VISUAL]
    for count in range(1, TOKENS + 1):
        for image, kept in enumerate(method.select(tokens, count).tolist()):
            visual, text = numbers_of(tokens.features, image), numbers(tokens, image, TextStates())
            assert kept == dart_by_hand(visual, text, norms[0][image], norms[1][image], count, pivots), count


VISUAL = ("visual", "text")


def test_dart_by_hand() -> None:
    """Two pivots, the longest visual key and the longest text key, each of which turns away what points as it does."""
    features = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [-1, 0.2], [0.1, 1], [0, -1]])
    answers = {
        LanguageVectors("keys", "visual"): torch.tensor([9.0, 1, 2, 3, 4, 5]).view(6, 1, 1),
        LanguageVectors("keys", "text"): torch.tensor([1.0, -3]).view(2, 1, 1),
        TextStates(): torch.tensor([[1.0, 0], [0, 1]]),
    }
    tokens = given(features, answers)
    method = make_method({"name": "dart", "visual_pivots": 1, "text_pivots": 1})
    # pivot 0 is kept and takes 3, which points away from it; the text pivot (0, 1) takes 5, then 1
    assert method.select(tokens, 1).tolist() == [[0]]
    assert method.select(tokens, 2).tolist() == [[0, 3]]
    assert method.select(tokens, 3).tolist() == [[0, 3, 5]]
    # the earlier pivot takes one more, of those at right angles the earlier
    assert method.select(tokens, 4).tolist() == [[0, 2, 3, 5]]
    assert method.select(tokens, 6).tolist() == [list(range(6))]


# cdpruner


def relevance_by_hand(features: np.ndarray, text: np.ndarray) -> np.ndarray:
    alike = (unit(features) @ unit(text[np.abs(text).sum(1) > 0]).T).mean(1)
    return (alike - alike.min()) / (alike.max() - alike.min())


def determinantal(features: np.ndarray, relevance: np.ndarray, count: int) -> list[int]:
    """Greedy, by the determinants themselves."""
    kernel = relevance[:, None] * (unit(features) @ unit(features).T) * relevance[None]
    chosen: list[int] = []
    for _ in range(count):
        gains = {}
        for token in set(range(len(features))) - set(chosen):
            own = [*chosen, token]
            gains[token] = np.linalg.det(kernel[np.ix_(own, own)])
        chosen.append(max(sorted(gains), key=lambda token: gains[token]))
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("theta", [None, 0.2, 0.7])
def test_cdpruner_equals_the_determinants(theta: float | None, seed: int) -> None:
    tokens = random_tokens(seed, layer=0)
    method = make_method({"name": "cdpruner", "relevance": theta})
    for count in range(1, WIDTH + 1):  # beyond the rank, all determinants are zero
        for image, kept in enumerate(method.select(tokens, count).tolist()):
            features = numbers_of(tokens.features, image)
            relevance = relevance_by_hand(features, numbers(tokens, image, TextStates()))
            if theta is not None:
                relevance = np.exp(theta / (2 * (1 - theta)) * relevance)
            assert kept == determinantal(features, relevance, count), count


def test_cdpruner_by_hand() -> None:
    """The most relevant first, then what is least like it; a duplicate of it last but for what says nothing."""
    features = torch.tensor([[0.8, 0.6, 0], [1, 0, 0], [1, 0, 0], [0.6, 0, 0.8], [-1, 0, 0]])
    tokens = given(features, {TextStates(): torch.tensor([[0.0, 0, 0], [2, 0, 0]])}, layer=0)
    method = make_method({"name": "cdpruner"})
    # relevance .9, 1, 1, .8, 0; beside token 1, token 0 adds .81 · .36 and token 3 adds .64 · .64
    for count, kept in enumerate([[1], [1, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4]], start=1):
        assert method.select(tokens, count).tolist() == [kept]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_cdpruner_goes_on_beyond_the_rank(kind: torch.dtype) -> None:
    """Duplicates, all of them or many: the most relevant follow, earlier ones first, and nothing is NaN."""
    method = make_method({"name": "cdpruner"})
    same = given(torch.ones(20, 4, dtype=kind), {TextStates(): torch.ones(3, 4, dtype=kind)}, layer=0)
    twice = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1).to(kind)
    copies = given(twice, {TextStates(): torch.ones(3, 3, dtype=kind)}, layer=0)
    nothing = given(torch.zeros(20, 4, dtype=kind), {TextStates(): torch.zeros(3, 4, dtype=kind)}, layer=0)
    for count in range(1, 21):
        assert method.select(same, count).tolist() == [list(range(count))]
        assert method.select(nothing, count).tolist() == [list(range(count))]
        kept = method.select(copies, count)[0]
        assert len(kept.unique()) == count
    relevance = relevance_by_hand(twice.double().numpy(), np.ones((3, 3)))
    kept = set(method.select(copies, 9)[0].tolist())
    first = set(method.select(copies, 3)[0].tolist())
    worst = max((relevance[t] for t in set(range(20)) - kept), default=0)
    assert all(relevance[token] >= worst - 1e-6 for token in kept - first)


def test_cdpruner_memory_grows_with_what_is_kept() -> None:
    """No kernel of all tokens with all."""
    tokens = given(torch.randn(4000, 16), {TextStates(): torch.randn(5, 16)}, layer=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        make_method({"name": "cdpruner"}).select(tokens, 8)
    assert max(event.self_cpu_memory_usage for event in profile.key_averages()) < 4000 * 4000


# divprune


def test_divprune_by_hand() -> None:
    """The most isolated token, then, again and again, the one farthest from all that were chosen."""
    angles = torch.tensor([0.0, 10, 30, 60, 150]).deg2rad()
    tokens = given(torch.stack([angles.cos(), angles.sin()], 1), {}, layer=0)
    method = make_method({"name": "divprune"})
    # 150° is 90° from its nearest; 0° is 150° from it; 60° is 60° from 0° and 90° from 150°; 30° is 30° from both
    for count, kept in enumerate([[4], [0, 4], [0, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4]], start=1):
        assert method.select(tokens, count).tolist() == [kept]


# all of them

FIELDS: list[dict] = [
    {"name": "pyramiddrop"},
    {"name": "sparsevlm"},
    {"name": "sparsevlm", "heads": 0.4375, "recycled": 0.0},
    {"name": "dart"},
    {"name": "cdpruner"},
]
fields = pytest.mark.parametrize("chosen", FIELDS, ids=str)


@fields
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_images_are_independent_and_padding_does_not_count(chosen: dict, kind: torch.dtype) -> None:
    tokens, method = random_tokens(seed=3), make_method(chosen)
    held = {}

    def typed(request: Any) -> Tensor:
        return held.setdefault(request, tokens.evidence(request).to(kind))

    features = tokens.features.to(kind)
    together = VisualTokens(3, tokens.layout, tokens.index, lambda: features, typed)

    def without_padding(image: int) -> VisualTokens:
        one = alone(together, image)

        def cut(request: Any) -> Tensor:
            answer = one.evidence(request)
            if isinstance(request, VisualEmbeddings) or getattr(request, "rows", "text") != "text":
                return answer
            return answer[..., PADS[image] :, :] if isinstance(request, LanguageAttention) else answer[:, PADS[image] :]

        return VisualTokens(3, one.layout, one.index, lambda: one.features, cut)

    for count in range(1, TOKENS + 1):
        found = method.reduce(together, count)
        for image in range(IMAGES):
            own = method.reduce(without_padding(image), count)
            assert torch.equal(own.kept[0], found.kept[image]), (count, image)
            merged = own.apply(features[image : image + 1])[0], found.apply(features)[image]
            torch.testing.assert_close(*merged, atol=1e-2 if kind == torch.bfloat16 else 1e-5, rtol=1e-2)


@fields
@pytest.mark.parametrize("rule", ["nearest", "clusters"])
def test_no_merging_waits_for_the_device(chosen: dict, rule: str) -> None:
    """Where there is no data, nothing can depend on it."""
    tokens, method = random_tokens(), make_method(chosen)
    index, features = tokens.index.to("meta"), tokens.features.to("meta")
    nowhere = VisualTokens(3, tokens.layout, index, lambda: features, lambda asked: tokens.evidence(asked).to("meta"))
    for count in (1, 9, TOKENS):
        found = make_merging({"rule": rule}).reduce(method, nowhere, count)
        assert found.kept.shape == (IMAGES, count) and found.kept.device.type == "meta"
        assert found.apply(features).shape == (IMAGES, count, WIDTH)


@fields
@pytest.mark.parametrize("name", ["llava_clip_full", "qwen2_vl", "gemma3"])
def test_rows_are_independent_and_counts_exact(chosen: dict, name: str) -> None:
    model, first = tiny(name), Method.registry[chosen["name"]].first_layer
    steps = [{"layer": 2 * first, "keep_ratio": 0.5}, {"layer": 3, "keep_ratio": 0.6}]
    own = PruningConfig(method=chosen, schedule=steps)
    random = PruningConfig(method={"name": "uniform"}, schedule=steps)
    samples = mixed_samples(model)
    kept: list[list] = []
    with prune(model, own) as pruner:
        together, report = generated(model, batch(samples)), pruner.report
        for row, each in enumerate(samples):
            output = generated(model, each)
            for ours, theirs in zip(output.logits, together.logits, strict=True):
                torch.testing.assert_close(ours[0], theirs[row], **EXACT)
            if is_visual(each).any():
                kept.append([step.tolist() for step in pruner.report[0].kept])
                assert kept[-1] == [step.tolist() for step in report[row].kept]
    with prune(model, random) as pruner:
        model(**batch(samples))
        counts = [[len(step) for step in entry.kept] for entry in pruner.report]
    assert [[len(step) for step in entry.kept] for entry in report] == counts
    assert kept != [[step.tolist() for step in entry.kept] for entry in pruner.report if entry.visual_tokens]


@pytest.mark.parametrize("name", ["pyramiddrop", "sparsevlm", "dart"])
def test_methods_that_read_layers_begin_inside_the_language_model(name: str) -> None:
    config = PruningConfig(method={"name": name}, schedule=[{"layer": 0, "keep_ratio": 0.5}])
    message = rf"schedule\.0\.layer is 0, but {name} reads .* choose one of 1 to 4"
    with pytest.raises(FlowpruneError, match=message), prune(tiny("llava_clip"), config):
        pass


@fields
def test_another_question_is_another_choice(chosen: dict) -> None:
    """All of them look at the text."""
    model, first = tiny("llava_siglip"), Method.registry[chosen["name"]].first_layer
    config = PruningConfig(method=chosen, schedule=[{"layer": 2 * first, "keep_ratio": 0.3}])
    picture, kept = sample(model)["pixel_values"], []
    for seed in range(3):
        with prune(model, config) as pruner:
            model(**sample(model, seed=seed) | {"pixel_values": picture})
        kept.append(pruner.report[0].kept[0].tolist())
    assert any(one != other for one, other in itertools.pairwise(kept))
