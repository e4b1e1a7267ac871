"""What every method must meet: counts, order, batches, merging, evidence, devices, its export, a pruned model.

``pytest -p multimodal.testing --pyargs multimodal.testing.methods --method my.py:My``. That a method computes what its
paper says is not tested here: that takes a slow computation of its own.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from multimodal import PruningConfig, prune
from multimodal.evidence import (
    LanguageAttention,
    LanguageVectors,
    Request,
    TextEmbeddings,
    TextStates,
    VisionFeatures,
    VisionKeys,
    VisionValues,
    VisualEmbeddings,
)
from multimodal.families import geometry_of
from multimodal.layout import Layout
from multimodal.methods import Method, Selection, VisualTokens
from multimodal.plan import kept_counts
from multimodal.ranges import SearchChoice, SearchRange
from multimodal.testing import METHODS
from multimodal.testing.contracts import (
    EXACT,
    alone,
    assert_restored,
    equals_masking,
    generated,
    mixed_samples,
    no_gradients,  # noqa: F401
    run_pruned,
    snapshot,
)
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import batch, is_visual, sample

LAYOUTS = [
    Layout(grids=((6, 7),)),
    Layout(grids=((4, 4), (6, 9)), newlines=(25, 35, 45, 55, 65, 75)),
    Layout(grids=((1, 13),), newlines=(0,)),
]
IMAGES, HEADS, TEXT, WIDTH = 3, 4, 7, 4


def variants(kind: type[Method]) -> Iterator[Method]:
    """A method with each parameter in turn at the ends of its range, or at each choice."""
    for field, info in kind.model_fields.items():
        for part in info.metadata:
            ends: Sequence = part.values if isinstance(part, SearchChoice) else ()
            if isinstance(part, SearchRange):
                ends = [int(end) if info.annotation is int else end for end in (part.low, part.high)]
            for value in ends:
                if value != info.default:
                    yield kind.model_validate({"name": kind.model_fields["name"].default, field: value})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every method that is tested with its defaults; without a model every variant of it, too."""
    if "method" not in metafunc.fixturenames:
        return
    shipped = [kind for kind in Method.registry.values() if kind.__module__.startswith("multimodal.methods.")]
    tested = [(kind(), *(() if "name" in metafunc.fixturenames else variants(kind))) for kind in METHODS or shipped]
    metafunc.parametrize("method", [method for each in tested for method in each], ids=described)


def described(method: Method) -> str:
    """Its name, and what is not its default."""
    changed = method.model_dump(exclude_defaults=True)
    return "-".join([method.name, *(f"{field}={value}" for field, value in changed.items())])


# on tokens without a model


def random_tokens(
    layout: Layout, layer: int, images: int = IMAGES, left: int | None = None, seed: int = 0, device: str = "cpu"
) -> VisualTokens:
    """Random tokens, whose evidence is random, too, whatever is asked."""
    generator = torch.Generator().manual_seed(seed)
    left = left or layout.patch_tokens
    index = torch.stack(
        [torch.randperm(layout.patch_tokens, generator=generator)[:left].sort()[0] for _ in range(images)]
    )
    features = torch.randn(images, left, WIDTH, generator=generator).to(device)
    answers: dict[Request, Tensor] = {}

    def shape(request: Request) -> tuple[int, ...]:
        rows = {"visual": left, "last": 1, "text": TEXT}
        match request:
            case LanguageAttention():
                heads = [HEADS] * (request.heads == "each")
                return (images, *heads, *[TEXT] * (request.rows == "text"), left)
            case LanguageVectors():
                return images, rows[request.rows], HEADS, 2
            case TextStates() | TextEmbeddings():
                return images, TEXT, WIDTH
            case VisualEmbeddings():
                return images, layout.patch_tokens, WIDTH
            case VisionFeatures() | VisionKeys() | VisionValues():
                return images, left, 5
        return images, left

    def answer(request: Request) -> Tensor:
        return answers.setdefault(request, torch.rand(shape(request), generator=generator).to(device))

    return VisualTokens(layer, layout, index.to(device), lambda: features, answer)


def declared_only(method: Method, tokens: VisualTokens) -> VisualTokens:
    """The tokens, whose evidence is what the method has declared."""

    def answer(request: Request) -> Tensor:
        assert request in method.evidence, f"{method.name} reads {request}, which its evidence does not declare"
        return tokens.evidence(request)

    return VisualTokens(tokens.layer, tokens.layout, tokens.index, lambda: tokens.features, answer)


def steps_of(method: Method, device: str = "cpu") -> Iterator[tuple[VisualTokens, list[int]]]:
    """Steps of every layout, before the language model and inside it, and counts to leave in them."""
    for layout in LAYOUTS:
        for layer in (0, 3):
            if layer >= method.first_layer:
                left = layout.patch_tokens - (0 if layer == 0 else 5)
                tokens = declared_only(method, random_tokens(layout, layer, left=left, device=device))
                yield tokens, sorted({1, 2, left // 4, left // 2, left - 3, left - 1, left})


def reduced(method: Method, tokens: VisualTokens, count: int) -> Selection:
    """What it leaves; the message of a wrong shape tells it."""
    selection = method.reduce(tokens, count)
    images, left = tokens.index.shape
    found = tuple(selection.kept.shape)
    assert found == (images, count), f"asked for {count} of {left} tokens of {images} images, it kept {found}"
    return selection


def test_it_leaves_as_many_tokens_as_it_is_asked_for_sorted_and_none_twice(method: Method) -> None:
    for tokens, counts in steps_of(method):
        left = tokens.index.shape[1]
        for count in counts:
            for row in reduced(method, tokens, count).kept:
                assert row.min() >= 0 and row.max() < left, f"it kept {row.tolist()} of tokens 0 to {left - 1}"
                assert torch.equal(row, row.unique()), f"kept tokens are not sorted, or one is there twice: {row}"


def test_merged_tokens_stand_for_one_or_more(method: Method) -> None:
    for tokens, counts in steps_of(method):
        for count in counts:
            selection = reduced(method, tokens, count)
            assert selection.apply(tokens.features).shape == (IMAGES, count, WIDTH)
            sizes = selection.sizes()
            if sizes is not None:
                assert selection.owner is not None
                assert (sizes >= 1).all(), f"a kept token stands for none, for it has no edge into itself: {sizes}"
                assert selection.owner.min() >= 0 and selection.owner.max() <= count, "an owner is none of the kept"


def test_an_image_does_not_depend_on_its_batch(method: Method) -> None:
    for tokens, counts in steps_of(method):
        for count in counts:
            together = reduced(method, tokens, count)
            merged = together.apply(tokens.features)
            for image in range(IMAGES):
                one = reduced(method, alone(tokens, image), count)
                kept, expected = one.kept[0].tolist(), together.kept[image].tolist()
                assert kept == expected, f"image {image} alone keeps {kept}, in a batch {expected}"
                torch.testing.assert_close(one.apply(tokens.features[image : image + 1])[0], merged[image])


def test_what_it_is_given_stays_as_it_was(method: Method) -> None:
    state = torch.get_rng_state()
    for tokens, counts in steps_of(method):
        given = [tokens.index, tokens.features, *(tokens.evidence(request) for request in method.evidence)]
        before = [part.clone() for part in given]
        reduced(method, tokens, counts[len(counts) // 2])
        changed = [number for number, pair in enumerate(zip(given, before, strict=True)) if not torch.equal(*pair)]
        assert not changed, f"it has changed tensors that it was given: {changed} of index, features, evidence"
    assert torch.equal(state, torch.get_rng_state()), "it draws from torch's global generator: make one of your own"


def test_it_does_not_wait_for_the_device(method: Method) -> None:
    """On a device whose tensors have no values: whoever reads one, waits for it."""
    for tokens, counts in steps_of(method, device="meta"):
        try:
            selection = reduced(method, tokens, counts[len(counts) // 2])
            selection.apply(tokens.features)
        except (RuntimeError, NotImplementedError) as error:
            pytest.fail(f"{method.name} waits for the device, or makes tensors on another: {error}")
        assert selection.kept.device == tokens.index.device, f"kept tokens are on {selection.kept.device}"


def test_it_survives_its_export(method: Method, tmp_path: Path) -> None:
    chosen = config_of(method)
    assert PruningConfig.from_pretrained(chosen.save_pretrained(tmp_path)) == chosen


# on a model


def config_of(method: Method, *keep_ratios: float) -> PruningConfig:
    """Two steps of it, from the first layer that it may prune before."""
    first, second = keep_ratios or (0.6, 0.5)
    steps = [{"layer": method.first_layer, "keep_ratio": first}, {"layer": 3, "keep_ratio": second}]
    told = {"positions": "original", "image_mean": (0.4, 0.5, 0.6), "image_std": (0.3, 0.2, 0.25)}
    return PruningConfig.model_validate({"method": method.model_dump(), "schedule": steps, **told})


def plain(method: Method) -> bool:
    """Whether it chooses tokens and changes none of them."""
    return type(method).reduce is Method.reduce and method.tower is None


MODELS = pytest.mark.parametrize("name", ["llava_clip", "llava_onevision"])  # a class token; tiles and newlines
TILES = pytest.mark.parametrize("name", ["llava_onevision"])


def prompts(model: PreTrainedModel) -> list[dict]:
    """One image, two, none."""
    return mixed_samples(model)[:3]


@MODELS
def test_pruning_equals_hiding_what_was_pruned(method: Method, name: str) -> None:
    if plain(method):
        equals_masking(name, "sdpa", batch(prompts(tiny(name))), config_of(method))


@TILES
def test_it_keeps_the_counts_of_the_schedule(method: Method, name: str) -> None:
    model, chosen = tiny(name), config_of(method)
    inputs = sample(model, images=2)
    layouts = geometry_of(model.config).layouts(inputs)
    [entry] = run_pruned(model, inputs, chosen)[3]
    expected = [sum(step) for step in zip(*(kept_counts(layout, chosen.schedule) for layout in layouts), strict=True)]
    assert [len(kept) for kept in entry.kept] == expected
    before = None
    for kept in map(set, (own.tolist() for own in entry.kept)):
        assert before is None or kept <= before, "a later step keeps a token that an earlier one did not"
        before = kept


@TILES
def test_keeping_everything_changes_nothing(method: Method, name: str) -> None:
    if method.tower is not None:  # what leaves the tower is a parameter's, too
        return
    model = tiny(name)
    inputs = batch(prompts(model))
    stock = generated(model, inputs)
    with prune(model, config_of(method, 1.0, 1.0)):
        found = generated(model, inputs)
    for ours, theirs in zip(found.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@MODELS
def test_a_batch_row_equals_the_sample_alone(method: Method, name: str) -> None:
    model = tiny(name)
    with prune(model, config_of(method)) as pruner:
        together, report = generated(model, batch(prompts(model))), pruner.report
        for row, inputs in enumerate(prompts(model)):
            output = generated(model, inputs)
            if is_visual(inputs).any():
                for kept, expected in zip(pruner.report[0].kept, report[row].kept, strict=True):
                    assert torch.equal(kept, expected), f"sample {row} keeps other tokens alone than in a batch"
            for ours, theirs in zip(output.logits, together.logits, strict=True):
                torch.testing.assert_close(ours[0], theirs[row], **EXACT)


@TILES
def test_the_model_is_as_it_was(method: Method, name: str) -> None:
    model = tiny(name)
    inputs = sample(model)
    logits = model(**inputs, output_hidden_states=True).logits  # transformers hooks what it records, once
    before = snapshot(model)
    with prune(model, config_of(method)):
        model(**inputs)
    assert_restored(model, inputs, before, logits)
