"""Parts that the contract suites share: which families, backends and configs, prompts, ways to run, snapshots."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations, cycle, product
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.methods import VisualTokens
from multimodal.testing.oracles import INNER_ONLY, attention_masks, config, run_masked, run_stock, text_model, tiny
from multimodal.testing.tiny_models import (
    BY_TOKEN,
    CACHE,
    ENCODES_FIRST,
    FAMILIES,
    batch,
    extended,
    family,
    is_visual,
    sample,
)
from multimodal.testing.tiny_models.family import FIRST_WORD

EXACT = {"atol": 1e-5, "rtol": 1e-5}
ROTATED = {"atol": 1e-4, "rtol": 0}

families = pytest.mark.parametrize("name", FAMILIES)
BACKENDS = ("eager", "sdpa", "fake_flash")
backends = pytest.mark.parametrize("attention", BACKENDS)
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
THOROUGH = ("llava_siglip", "llava_onevision")  # families that meet every config; the others meet these:
COMMON = ("recycling", "weighted")


def crossed(*common: tuple[str, ...]) -> Any:
    """Thorough families meet every config, in another backend two that it can run; the others one of ``common`` each.

    Args:
        common: names of configs; the first are the first family's, the second the next one's, and again from the first.
    """
    met = []
    for name, own in zip(FAMILIES, cycle(common), strict=False):
        pairs = [("sdpa", config_name) for config_name in (CONFIGS if name in THOROUGH else own)]
        pairs += [("fake_flash", config_name) for config_name in ("recycling", "released") if name in THOROUGH]
        pairs += [("eager", config_name) for config_name in COMMON if name == "llava_dinov2"]
        met += [
            pytest.param(name, attention, CONFIGS[config_name], id=f"{name}-{attention}-{config_name}")
            for attention, config_name in pairs
        ]
    return pytest.mark.parametrize(("name", "attention", "chosen"), met)


cases = crossed(COMMON)
turns = crossed(*((config_name,) for config_name in COMMON))  # what a family's own code has little part in


def spread(of: Iterable[str] = tuple(FAMILIES), **axes: Sequence[Any]) -> Any:
    """Thorough families meet every pair of values of two axes, the others the first value of each axis."""
    met = covering(*axes.values())
    return pytest.mark.parametrize(
        ("name", *axes), [(name, *values) for name in of for values in (met if name in THOROUGH else met[:1])]
    )


def covering(*axes: Sequence[Any]) -> list[tuple]:
    """Combinations of the axes' values in which every pair of values of two axes is met; all of their first first."""
    places = list(combinations(range(len(axes)), 2)) if len(axes) > 1 else [(0, 0)]
    left = list(product(*(range(len(axis)) for axis in axes)))

    def pairs(choice: tuple[int, ...]) -> set[tuple[int, ...]]:
        return {(a, b, choice[a], choice[b]) for a, b in places}

    missing = set().union(*map(pairs, left))
    chosen: list[tuple[int, ...]] = []
    while missing:
        best = max(left, key=lambda choice: len(pairs(choice) & missing)) if chosen else left[0]
        chosen.append(best)
        missing -= pairs(best)
    return [tuple(axis[place] for axis, place in zip(axes, choice, strict=True)) for choice in chosen]


def rotated(values: Iterable[str], share: int = 2) -> list[tuple[str, str]]:
    """Thorough families with every value; of the others each with every ``share``-th, from one further on."""
    values = list(values)
    return [
        (name, value)
        for number, name in enumerate(FAMILIES)
        for value in (values if name in THOROUGH else values[number % share :: share])
    ]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """As where models answer; a suite that imports this has it in every test."""
    with torch.no_grad():
        yield


def fitting(model: PreTrainedModel, chosen: PruningConfig) -> PruningConfig:
    """The config, with original positions where the model's rotary axes allow no others."""
    return chosen if family(model).rotary_axes == 1 else chosen.model_copy(update={"positions": "original"})


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
    return [one, two, none] if ENCODES_FIRST and family(model).copies_in_order else [one, none, another]


def rows_of_one_length(model: PreTrainedModel) -> dict:
    """Unpadded at first, padded once rows have lost different numbers of tokens."""
    long, short = sample(model, images=2, text=4, seed=1), sample(model, images=1, text=4, seed=2)
    more = torch.randint(9, 60, (1, long["input_ids"].shape[1] - short["input_ids"].shape[1]))
    return batch([long, extended(model, short, more)])


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


def equals_masking(name: str, attention: str, inputs: dict, chosen: PruningConfig) -> None:
    """A prompt, pruned, and tokens after it, equal the whole sequence under a mask that hides the pruned tokens.

    Args:
        name: of a tiny model.
        attention: its backend.
        inputs: padded on the left, if at all.
        chosen: of a method that changes no token, with original positions.
    """
    model = tiny(name, attention)
    schedule = [(step.layer, step.keep_ratio) for step in chosen.schedule]
    rows, length = inputs["input_ids"].shape
    forced = forced_tokens(rows)
    hidden, logits, decoded, report = run_pruned(model, inputs, chosen, forced)

    whole = extended(model, inputs, forced)
    kept = [entry.kept for entry in report]
    reference = tiny(name, "sdpa" if attention == "fake_flash" else attention)
    stock, untouched = run_stock(reference, whole)
    masks = attention_masks(stock, whole, kept, schedule)
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

    assert (untouched[:2, length - 1] - hidden[:2, -1]).abs().max() > 1e-2  # the test has teeth


def claim(model: PreTrainedModel, kind: str, attention: str, refusal: str | None) -> tuple[str, tuple[str, ...]]:
    """What a passed test shows of a tiny model, for ``record_property``: that it ran, or why not."""
    return "support", (model.config.model_type, kind, attention, refusal or "")


def generated(model: PreTrainedModel, inputs: dict, **options: Any) -> Any:
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True} | options
    return model.generate(**inputs, return_dict_in_generate=True, **options)


def best(logits: torch.Tensor) -> torch.Tensor:
    """What greedy decoding picks: never a placeholder."""
    return logits.index_fill(-1, torch.arange(FIRST_WORD), -torch.inf).argmax(-1)


def refused(model: PreTrainedModel, attention: str, chosen: PruningConfig) -> str | None:
    """Flash attention takes no additive mask: what needs one must be refused, and this is how."""
    message = None
    if attention == "fake_flash" and chosen.merged_weight:
        message = "weight of merged tokens needs an additive mask"
    elif attention == "fake_flash" and not family(model).flash:
        message = "takes no mask"
    if message is None:
        return None
    with pytest.raises(FlowpruneError, match=message) as error, prune(model, chosen):
        pass
    return str(error.value)


def rewinds(model: PreTrainedModel) -> bool:
    """Whether the last tokens can be taken back: not from the sliding windows of older versions."""
    return not family(model).windows or hasattr(DynamicCache, "activate_past_recording")


def assists(model: PreTrainedModel) -> bool:
    """Whether guesses change nothing in the stock model: where the prompt attends both ways, it sees the first ones."""
    return rewinds(model) and family(model).following_type == 0


def recomputes(model: PreTrainedModel) -> bool:
    """Whether the stock model needs no cache: older PaliGemmas read what they have written as prompt."""
    return family(model).following_type == 0 or "_update_model_kwargs_for_generation" in vars(type(model))


def recording_cache(model: PreTrainedModel) -> DynamicCache:
    """A cache whose sliding windows can be taken back, where this version has any."""
    cache = DynamicCache(config=text_model(model).config)
    if hasattr(cache, "activate_past_recording"):
        cache.activate_past_recording()
    return cache


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


def assert_restored(model: PreTrainedModel, inputs: dict, before: dict, logits: torch.Tensor) -> None:
    assert snapshot(model) == before
    assert "get_image_features" not in vars(model.model)
    assert torch.equal(model(**inputs).logits, logits)


# calls of every kind

KEEPS_ALL, PRUNES = config([(0, 1.0), (2, 1.0)]), config()


def called(call: Callable[[], Any]) -> Any:
    """What the stock model gives; where it fails by itself, there is nothing to be equal to."""
    try:
        return call()
    except Exception as error:
        pytest.skip(f"the stock model fails: {type(error).__name__}: {str(error)[:60]}")


@contextmanager
def refuses(match: str = "") -> Iterator[None]:
    """One FlowpruneError, of one sentence on one line."""
    with pytest.raises(FlowpruneError, match=match) as error:
        yield
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence and not re.search(r"\. [A-Z]", sentence), sentence


def right_or_refused(call: Callable[[], torch.Tensor], expected: torch.Tensor) -> None:
    """The same as the stock model's meaning, or one sentence."""
    try:
        found = call()
    except FlowpruneError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        torch.testing.assert_close(found, expected, **EXACT)


def padded_on_the_right(samples: list[dict]) -> dict:
    """Samples side by side, padded on the right."""
    inputs = batch(samples)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    rolled = {
        key: torch.stack([row.roll(-n) for row, n in zip(inputs[key], padding, strict=True)])
        for key in BY_TOKEN
        if key in inputs
    }
    return inputs | rolled


def alone(tokens: VisualTokens, image: int) -> VisualTokens:
    """One image of them."""
    own = slice(image, image + 1)
    return VisualTokens(
        tokens.layer,
        tokens.layout,
        tokens.index[own],
        lambda: tokens.features[own],
        lambda request: tokens.evidence(request)[own],
    )
