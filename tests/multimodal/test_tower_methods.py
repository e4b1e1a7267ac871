"""Methods that read the vision tower, against slow re-computations of their papers' rules, and live."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import multimodal.merging.nearest
import multimodal.methods.holov
import multimodal.methods.prumerge
import multimodal.methods.vispruner
import multimodal.selection
from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.evidence import GlobalAttention, Request, VisionFeatures, VisionKeys
from multimodal.families import geometry_of
from multimodal.layout import Layout
from multimodal.methods import Method, Selection, VisualTokens, make_method
from multimodal.plan import kept_counts
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import FAMILIES, batch, sample
from multimodal.testing.tiny_models.family import VISION

LAYOUTS = [
    Layout(grids=((6, 7),)),
    Layout(grids=((4, 4), (6, 9)), newlines=(25, 35, 45, 55, 65, 75)),
    Layout(grids=((1, 13),), newlines=(0,)),
    Layout(grids=((7, 5), (3, 2), (1, 1))),
]
METHODS: list[dict[str, Any]] = [
    {"name": "fastervlm"},
    {"name": "vispruner"},
    {"name": "vispruner", "important_share": 0.0},
    {"name": "vispruner", "important_share": 0.75},
    {"name": "visionzip"},
    {"name": "visionzip", "contextual_share": 0.6},
    {"name": "hiprune"},
    {"name": "hiprune", "anchor_share": 0.6},
    {"name": "hiprune", "anchor_share": 1.0},
    {"name": "vscan"},
    {"name": "vscan", "window": 2},
    {"name": "prumerge"},
    {"name": "prumerge", "uniform_share": 0.75, "neighbours": 5},
    {"name": "prumerge", "uniform_share": 1.0, "neighbours": 0},
    {"name": "holov"},
    {"name": "holov", "chunks": 3, "variety_weight": 2.0},
    {"name": "holov", "chunks": 1},
]
PLAIN = [{"name": name} for name in dict.fromkeys(fields["name"] for fields in METHODS)]

Kept = dict[int, np.ndarray]  # what each kept token carries, by its place
Place = tuple[int, int, int]  # grid, row, column


def tokens_of(
    method: Method,
    layout: Layout,
    layer: int = 0,
    left: int | None = None,
    seed: int = 0,
    change: Callable[[Tensor], Tensor] = lambda values: values,
) -> VisualTokens:
    """Three images of random tokens and random evidence; attention is skewed, as it is in towers."""
    generator, left = torch.Generator().manual_seed(seed), left or layout.patch_tokens
    index = torch.stack([torch.randperm(layout.patch_tokens, generator=generator)[:left].sort()[0] for _ in range(3)])
    features = change(torch.randn(3, left, 6, generator=generator))
    answers: dict[Request, Tensor] = {}
    for request in method.evidence:
        if isinstance(request, VisionFeatures | VisionKeys):
            answers[request] = change(torch.randn(3, left, 5, generator=generator))
        else:
            answers[request] = torch.rand(3, left, generator=generator).pow(4) / left
    return VisualTokens(layer, layout, index, lambda: features, answers.__getitem__)


# the rules


def ranking(score: Sequence[float], among: Sequence[int]) -> list[int]:
    return sorted(among, key=lambda token: (-score[token], token))


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def fastervlm(method: Any, attention: np.ndarray, *, x: np.ndarray, count: int, **_: Any) -> Kept:
    return {token: x[token] for token in ranking(attention, range(len(x)))[:count]}


def vispruner(method: Any, attention: np.ndarray, seen: np.ndarray, *, x: np.ndarray, count: int, **_: Any) -> Kept:
    important = int(count * method.important_share)
    order = ranking(attention, range(len(x)))
    listed, wanted = order[important:], count - important
    while len(listed) > wanted and wanted:
        even, odd = listed[::2], listed[1::2]
        likeness = {token: max(cosine(seen[token], seen[other]) for other in odd) for token in even}
        gone = sorted(even, key=lambda token: -likeness[token])[: min(8, len(listed) - wanted)]
        listed = [token for token in listed if token not in gone]
    return {token: x[token] for token in [*order[:important], *listed[:wanted]]}


def visionzip(method: Any, attention: np.ndarray, keys: np.ndarray, *, x: np.ndarray, count: int, **_: Any) -> Kept:
    number = int(method.contextual_share * count)
    dominant = ranking(attention, range(len(x)))[: count - number]
    rest = [token for token in range(len(x)) if token not in dominant]
    if not number:
        return {token: x[token] for token in dominant}
    targets = rest[:: len(rest) // number][:number]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for token in rest:
        if token not in targets:
            members[max(targets, key=lambda target: cosine(keys[token], keys[target]))].append(token)
    merged = {target: x[target] + (x[own].mean(0) if own else 0) for target, own in members.items()}
    return {token: x[token] for token in dominant} | merged


def hiprune(
    method: Any, objects: np.ndarray, deep: np.ndarray, *, x: np.ndarray, count: int, places: Sequence[Place], **_: Any
) -> Kept:
    anchors = ranking(objects, range(len(x)))[: round(count * method.anchor_share / 5)]
    around = {
        (grid, row + down, column + right)
        for grid, row, column in (places[anchor] for anchor in anchors)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))
    }
    buffers = [token for token in range(len(x)) if places[token] in around and token not in anchors]
    rest = [token for token in range(len(x)) if token not in anchors and token not in buffers]
    chosen = [*anchors, *ranking(deep, buffers), *ranking(deep, rest)]
    return {token: x[token] for token in chosen[:count]}


def vscan(
    method: Any,
    shallow: np.ndarray,
    deep: np.ndarray,
    last: np.ndarray,
    *,
    x: np.ndarray,
    count: int,
    places: Sequence[Place],
    layer: int,
) -> Kept:
    if layer:
        return fastervlm(method, last, x=x, count=count)
    windows: dict[Place, list[int]] = {}
    for token, (grid, row, column) in enumerate(places):
        windows.setdefault((grid, row // method.window, column // method.window), []).append(token)
    queues = [ranking(shallow, windows[window]) for window in sorted(windows)]
    chosen: list[int] = []
    while len(chosen) < count // 2:
        for queue in queues:
            if queue and len(chosen) < count // 2:
                chosen.append(queue.pop(0))
    chosen += ranking(deep, [token for token in range(len(x)) if token not in chosen])[: count - len(chosen)]
    members = {token: [token] for token in chosen}
    for token in range(len(x)):
        if token not in chosen:
            members[max(chosen, key=lambda kept: cosine(x[token], x[kept]))].append(token)
    return {token: x[own].mean(0) for token, own in members.items()}


def prumerge(method: Any, attention: np.ndarray, keys: np.ndarray, *, x: np.ndarray, count: int, **_: Any) -> Kept:
    everything = list(range(len(x)))
    if count == len(x):
        return dict(enumerate(x))
    even = int(method.uniform_share * (count - 1))
    top = ranking(attention, everything)[: count - 1 - even]
    rest = [token for token in everything if token not in top]
    kept = [*top, *(rest[number * len(rest) // even] for number in range(even))]
    found = {}
    for token in kept:
        others = sorted((other for other in everything if other != token), key=lambda n: -cosine(keys[n], keys[token]))
        found[token] = x[token] + sum(attention[other] * x[other] for other in others[: method.neighbours])
    dropped = ranking(attention, [token for token in everything if token not in kept])
    return found | {dropped[0]: sum(attention[token] * x[token] for token in dropped)}


def holov(method: Any, attention: np.ndarray, *, x: np.ndarray, count: int, **_: Any) -> Kept:
    number = min(method.chunks, len(x))
    chunks: list[list[int]] = [[] for _ in range(number)]
    for token in range(len(x)):
        chunks[token * number // len(x)].append(token)
    variety = np.zeros(len(x))
    for own in chunks:
        for token in own:
            if len(own) > 1:
                variety[token] = np.var([cosine(x[token], x[other]) for other in own], ddof=1)
    if variety.any():
        variety *= attention.mean() / variety.mean()
    scores = [
        float(np.mean([attention[token] + method.variety_weight * variety[token] for token in c])) for c in chunks
    ]
    best = ranking(scores, range(number))
    quota = [int(score / sum(scores) * count) for score in scores]
    for chunk in best[: count - sum(quota)]:
        quota[chunk] += 1
    over = sum(max(0, quota[chunk] - len(chunks[chunk])) for chunk in best)
    quota = [min(quota[chunk], len(chunks[chunk])) for chunk in range(number)]
    for chunk in best:
        more = min(over, len(chunks[chunk]) - quota[chunk])
        quota[chunk], over = quota[chunk] + more, over - more
    return {token: x[token] for chunk in best for token in ranking(attention, chunks[chunk])[: quota[chunk]]}


RULES: dict[str, Callable[..., Kept]] = {
    rule.__name__: rule for rule in (fastervlm, vispruner, visionzip, hiprune, vscan, prumerge, holov)
}


def check(method: Method, tokens: VisualTokens, count: int) -> None:
    """A method leaves what its rule does, image by image."""
    selection = method.reduce(tokens, count)
    merged = selection.apply(tokens.features)
    cells = tokens.layout.cells.tolist()
    for image in range(len(tokens.index)):
        expected = RULES[method.name](
            method,
            *(tokens.evidence(request)[image].double().numpy() for request in method.evidence),
            x=tokens.features[image].double().numpy(),
            count=count,
            places=[tuple(cells[place]) for place in tokens.index[image].tolist()],
            layer=tokens.layer,
        )
        assert selection.kept[image].tolist() == sorted(expected)
        carried = np.stack([expected[token] for token in sorted(expected)])
        np.testing.assert_allclose(merged[image].numpy(), carried, atol=1e-5)


@pytest.mark.parametrize("fields", METHODS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.grids))
@pytest.mark.parametrize("layer", [0, 3])
def test_every_method_follows_its_rule(fields: dict, layout: Layout, layer: int) -> None:
    method = make_method(fields)
    left = layout.patch_tokens - (4 if layer else 0)
    for count in {1, 2, 3, *range(4, left, 12), left - 1, left}:
        check(method, tokens_of(method, layout, layer, left, seed=count), count)


@pytest.mark.parametrize("fields", PLAIN, ids=str)
def test_parts_make_the_whole(fields: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little is formed at once."""
    modules = (
        multimodal.merging.nearest,
        multimodal.methods.holov,
        multimodal.methods.prumerge,
        multimodal.methods.vispruner,
        multimodal.selection,
    )
    for module in modules:
        monkeypatch.setattr(module, "CHUNK", 300)
    method = make_method(fields)
    check(method, tokens_of(method, LAYOUTS[1]), 20)


@pytest.mark.parametrize("fields", METHODS, ids=str)
def test_half_precision_is_compared_in_single(fields: dict) -> None:
    method, layout = make_method(fields), LAYOUTS[1]
    half = tokens_of(method, layout, change=lambda values: values.bfloat16())
    single = tokens_of(method, layout, change=lambda values: values.bfloat16().float())
    for count in (7, 30):
        mine, theirs = method.reduce(half, count), method.reduce(single, count)
        assert torch.equal(mine.kept, theirs.kept)
        expected = theirs.apply(single.features).bfloat16()
        assert mine.apply(half.features).dtype == torch.bfloat16
        torch.testing.assert_close(mine.apply(half.features), expected)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("fastervlm", range(8)),
        ("hiprune", range(8)),
        ("prumerge", range(8)),
        ("visionzip", range(8)),
        ("vscan", [0, 1, 2, 3, 4, 6, 72, 78]),  # the first of each of four windows, and four others
        ("holov", range(0, 72, 9)),  # the first of the first eight chunks
    ],
)
def test_ties_go_to_the_earlier_token(name: str, kept: Sequence[int]) -> None:
    method = make_method({"name": name})
    same, apart = torch.ones(1, 144), torch.eye(144)[None]
    tokens = VisualTokens(
        0,
        Layout(grids=((12, 12),)),
        torch.arange(144)[None],
        lambda: apart,
        lambda request: apart if isinstance(request, VisionKeys) else same,
    )
    assert method.select(tokens, 8).tolist() == [list(kept)]


@pytest.mark.parametrize(
    ("share", "count", "kept"),
    [
        (0.0, 4, [0, 1, 3, 5]),  # of 0, 2 and 4, the latter two have a near one (5° and 10°) among 1, 3 and 5
        (0.0, 3, [1, 3, 5]),
        (0.0, 2, [1, 3]),  # then 1, 5 against 3: 110° and 100°
        (0.0, 1, [3]),
        (0.5, 2, [0, 4]),  # 1, 3, 5 go first, all at once, then 2 is compared with 4
        (1.0, 3, [0, 1, 2]),
    ],
)
def test_vispruner_by_hand(share: float, count: int, kept: list[int]) -> None:
    method = make_method({"name": "vispruner", "important_share": share})
    angles = torch.tensor([0.0, 90, 85, 200, 190, 300]).deg2rad()
    seen = torch.stack([angles.cos(), angles.sin()], 1)[None]
    attention = torch.arange(6, 0, -1).float()[None]
    tokens = VisualTokens(
        0,
        Layout(grids=((2, 3),)),
        torch.arange(6)[None],
        lambda: torch.zeros(1, 6, 1),
        lambda request: seen if isinstance(request, VisionFeatures) else attention,
    )
    assert method.select(tokens, count).tolist() == [kept]


def test_hiprune_keeps_to_the_grid() -> None:
    """The neighbours of a row's last token are not the next row's first."""
    method = make_method({"name": "hiprune", "anchor_share": 1.0})
    objects, deep = torch.zeros(1, 18), torch.zeros(1, 18)
    objects[0, 5] = 1
    deep[0, 0] = 1
    layout = Layout(grids=((3, 3), (3, 3)))
    answers = dict(zip(method.evidence, (objects, deep), strict=True))
    tokens = VisualTokens(0, layout, torch.arange(18)[None], lambda: torch.zeros(1, 18, 1), answers.__getitem__)
    assert method.select(tokens, 4).tolist() == [[2, 4, 5, 8]]
    assert method.select(tokens, 5).tolist() == [[0, 2, 4, 5, 8]]


def test_contextual_tokens_are_sums_as_published() -> None:
    method = make_method({"name": "visionzip", "contextual_share": 0.5})
    tokens = tokens_of(method, LAYOUTS[0])
    selection: Selection = method.reduce(tokens, 8)
    assert selection.owner is not None and selection.share is not None
    total = torch.zeros(3, 8).scatter_add(1, selection.owner, selection.share)
    assert torch.allclose(total.sort(1).values[:, :4], torch.ones(3, 4))
    assert torch.allclose(total.sort(1).values[:, 4:], torch.full((3, 4), 2.0))


# what they share


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.grids))
def test_neighbours_are_those_of_the_grid(layout: Layout) -> None:
    cells = [tuple(cell) for cell in layout.cells.tolist()]
    for token, (grid, row, column) in enumerate(cells):
        around = [(grid, row - 1, column), (grid, row + 1, column), (grid, row, column - 1), (grid, row, column + 1)]
        expected = [cells.index(cell) if cell in cells else len(cells) for cell in around]
        assert layout.neighbours[token].tolist() == expected


def test_layers_have_names_by_depth() -> None:
    """A layer may go by two names in one method, and each is answered."""
    noted: list[list[Tensor]] = []
    asked = (GlobalAttention(0.4), GlobalAttention(-2), GlobalAttention(-1), VisionKeys(-2), VisionKeys(0.4, "mean"))

    class Naming(Method):
        name: Literal["test_naming"] = "test_naming"

        @property
        def evidence(self) -> Sequence[Request]:
            return asked

        def score(self, tokens: VisualTokens) -> Tensor:
            noted.append([tokens.evidence(request) for request in asked])
            return -tokens.index.float()

    model = tiny("llava_clip")
    geometry = geometry_of(model.config)
    layers = list(geometry.whole_view_layers)
    assert [geometry.vision_layer(depth) for depth in (0.01, 0.4, 0.99)] == [layers[0], layers[1], layers[2]]
    for wrong in (0, 1, 1.5, -0.5):
        with pytest.raises(FlowpruneError, match="does not exist"):
            geometry.vision_layer(wrong)
    with prune(model, PruningConfig(method=Naming(), schedule=[{"layer": 0, "keep_ratio": 0.5}])):
        model(**sample(model))
    del Method.registry["test_naming"]
    [(share, second, last, keys, mean)] = noted
    assert torch.equal(share, second) and not torch.equal(share, last)
    torch.testing.assert_close(mean, keys.unflatten(-1, (3, -1)).mean(-2))


@pytest.mark.parametrize("name", ["llava_clip", "llava_siglip"])
def test_global_attention_is_the_class_tokens_or_what_is_received(name: str) -> None:
    """Head by head and averaged, or of all heads side by side, from the projections themselves."""
    model, heads = tiny(name), VISION["num_attention_heads"]
    inputs, noted = sample(model), {}
    module: Any = FAMILIES[name].vision_attention(model)
    handles = [
        getattr(module, f"{which}_proj").register_forward_hook(
            lambda _, args, out, which=which: noted.update({which: out[0]})
        )
        for which in "qk"
    ]
    seen: dict[str, Tensor] = {}

    class Looking(Method):
        name: Literal["test_looking"] = "test_looking"

        @property
        def evidence(self) -> Sequence[Request]:
            return GlobalAttention(-1), GlobalAttention(-1, "joined")

        def score(self, tokens: VisualTokens) -> Tensor:
            mean, side_by_side = (tokens.evidence(request)[0] for request in self.evidence)
            seen.update(mean=mean, joined=side_by_side)
            return mean[None]

    with prune(model, PruningConfig(method=Looking(), schedule=[{"layer": 0, "keep_ratio": 0.5}])):
        model(**inputs)
    del Method.registry["test_looking"]
    for handle in handles:
        handle.remove()
    parts = {"mean": [part.unflatten(-1, (heads, -1)) for part in (noted["q"], noted["k"])]}
    parts["joined"] = [part.unsqueeze(1) for part in (noted["q"], noted["k"])]
    for which, (queries, keys) in parts.items():
        logits = torch.einsum("ihd,jhd->hij", queries, keys) / queries.shape[-1] ** 0.5
        attention = logits.softmax(-1).mean(0)
        expected = attention[0, 1:] if name == "llava_clip" else attention.mean(0)
        torch.testing.assert_close(seen[which], expected, atol=1e-6, rtol=1e-5)


# live


@pytest.mark.parametrize("fields", METHODS, ids=str)
@pytest.mark.parametrize("name", ["llava_clip", "llava_siglip", "qwen2_5_vl"])
def test_live_counts_are_exact_and_rows_stand_alone(name: str, fields: dict) -> None:
    """In towers with a class token, without one, and with a merger."""
    model = tiny(name)
    config = PruningConfig(method=fields, schedule=[{"layer": 0, "keep_ratio": 0.55}, {"layer": 3, "keep_ratio": 0.4}])
    samples = [sample(model, images=2), sample(model, images=1, seed=1)]
    with prune(model, config) as pruner:
        model(**batch(samples))
        together = [[kept.tolist() for kept in entry.kept] for entry in pruner.report]
        for own, expected in zip(samples, together, strict=True):
            layouts = geometry_of(model.config).layouts(own)
            model(**own)
            [entry] = pruner.report
            assert [kept.tolist() for kept in entry.kept] == expected
            for step, kept in enumerate(entry.kept):
                assert len(kept) == sum(kept_counts(layout, config.schedule)[step] for layout in layouts)
