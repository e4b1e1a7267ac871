"""Pruning inside the vision tower, against the stock tower's layers run one by one on the patches that are left."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal import FlowpruneError, PruningConfig, prune
from multimodal.families import modules_of
from multimodal.testing.contracts import EXACT, assert_restored, snapshot
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import batch, is_visual, sample

DENSE = ["llava_clip", "llava_siglip", "llava_onevision", "llava_next", "gemma3", "aya_vision"]
PACKED = ["qwen2_vl", "qwen2_5_vl", "llava_pixtral", "smolvlm"]
STEPS = [{"layer": 0, "keep_ratio": 0.4}, {"layer": 2, "keep_ratio": 0.5}]
METHODS = [
    {"name": "flowcut"},
    {"name": "flowcut", "pace": 1.0, "surplus": 1.7},
    {"name": "ipcv", "depth": 0.4, "keep": 0.5},
]


def config(method: dict, steps: list = STEPS) -> PruningConfig:
    return PruningConfig(method=method, schedule=steps)


class Tower:
    """The stock tower's layers, one by one, and what each compared."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.modules = modules_of(model)
        self.layers = len(self.modules.geometry.whole_view_layers)

    def run(self, number: int, hidden: Tensor) -> tuple[Tensor, dict[str, np.ndarray]]:
        layer = self.modules.vision_layer(number - self.layers)
        made: dict[str, Tensor] = {}
        names = {"q": ("q_proj", "query"), "k": ("k_proj", "key"), "v": ("v_proj", "value")}
        handles = [
            module.register_forward_hook(lambda _, args, out, which=which: made.update({which: out}))
            for name, module in layer.named_modules()
            for which, ends in names.items()
            if name.split(".")[-1] in ends
        ]
        try:
            masked = "attention_mask" in inspect.signature(inspect.unwrap(type(layer).forward)).parameters
            after = layer(hidden, attention_mask=None) if masked else layer(hidden)
        finally:
            for handle in handles:
                handle.remove()
        heads = self.modules.vision_tower.config.num_attention_heads
        split = {k: v.unflatten(-1, (heads, -1)).transpose(1, 2).double().numpy() for k, v in made.items()}
        return (after[0] if isinstance(after, tuple) else after), split


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def flow(made: dict[str, np.ndarray], extra: int) -> np.ndarray:
    """FlowCut's score of one view's patches, from ``[heads, tokens, d]``."""
    q, k, v = made["q"], made["k"], made["v"]
    heads, tokens, d = q.shape
    a, s = np.zeros(tokens), np.zeros(tokens)
    for head in range(heads):
        query = q[head, 0] if extra else q[head].mean(0)
        value = v[head, 0] if extra else v[head].mean(0)
        a += softmax(k[head] @ query / d**0.5) / heads
        s += softmax(v[head] @ value) / heads
    a, s = a[extra:], s[extra:]
    return (a / a.sum() + s / s.sum()) * np.abs(v.mean(0)).sum(-1)[extra:]


def encoded(model: PreTrainedModel, first: Tensor, method: dict, target: int, extra: int) -> tuple[Tensor, np.ndarray]:
    """One view's tokens behind the tower ``[tokens, C]`` and the patches' score, from what the first layer is given."""
    tower, hidden = Tower(model), first
    total = hidden.shape[1] - extra
    there = np.arange(total)
    states, frozen, score = None, None, None
    for number in range(tower.layers):
        after, made = tower.run(number, hidden)
        made = {k: v[0] for k, v in made.items()}
        if method["name"] == "flowcut":
            now = flow(made, extra)
            score = now if score is None else (score + now) / 2
            goal = min(len(there), round(method.get("surplus", 1.0) * target))
            last = number == tower.layers - 1
            pace = method.get("pace", 0.5) * (len(there) - goal) / (tower.layers - number) ** 0.5
            leaving = len(there) - goal if last else round(pace) if number % 2 else 0
        else:
            at = min(round(method["depth"] * tower.layers), tower.layers - 1)
            if number <= at:
                score = np.linalg.norm((after - hidden)[0, extra:].double().numpy(), axis=-1)
            leaving = total - max(target, round(method["keep"] * total)) if number == at else 0
        if states is None and leaving:
            states = after[0].clone()
            frozen = states.clone()
        if states is not None:
            states[extra + there] = after[0, extra:]
            states[:extra] = after[0, :extra]
        if leaving:
            stay = np.sort(np.argsort(-score, kind="stable")[: len(there) - leaving])
            there, score = there[stay], score[stay]
            after = after[:, [*range(extra), *(extra + stay)]]
        hidden = after
    if states is None:
        return hidden[0], score
    whole = np.zeros(total)
    whole[there] = score
    if method["name"] == "ipcv":
        change = states - frozen
        for patch in set(range(total)) - set(there):
            apart = [(float((frozen[extra + patch] - frozen[extra + other]).norm()), other) for other in there]
            near = [extra + other for _, other in sorted(apart)[:10]]
            states[extra + patch] += change[near].mean(0)
    return states, whole


def noted_input(layer: nn.Module, into: list[Tensor]) -> Any:
    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        into.append(args[0] if args else kwargs["hidden_states"])

    return layer.register_forward_pre_hook(note, with_kwargs=True)


def noted_output(layer: nn.Module, into: list[Tensor]) -> Any:
    return layer.register_forward_hook(
        lambda _, args, output: into.append(output[0] if isinstance(output, tuple) else output)
    )


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_the_tower_sees_only_the_patches_that_are_left(name: str, method: dict) -> None:
    model = tiny(name)
    modules, inputs = modules_of(model), sample(model, images=2)
    geometry = modules.geometry
    depth = len(geometry.whole_view_layers)
    first, last = modules.vision_layer(-depth), modules.vision_layer(-1)
    seen: dict[str, list[Tensor]] = {"first": [], "last": []}
    logits, before = model(**inputs).logits, snapshot(model)
    with prune(model, config(method)):
        handles = [noted_input(first, seen["first"]), noted_output(last, seen["last"])]
        model(**inputs)
        for handle in handles:
            handle.remove()
    assert_restored(model, inputs, before, logits)
    target = max(1, int(0.4 * geometry.view_patches + 0.5))
    for given, found in zip(seen["first"], seen["last"], strict=True):
        extra = given.shape[1] - geometry.view_patches
        for view in range(len(given)):
            expected, _ = encoded(model, given[view : view + 1], method, target, extra)
            torch.testing.assert_close(found[view], expected, **EXACT)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", ["llava_clip", "llava_siglip"])
def test_the_first_step_keeps_the_highest_scores(name: str, method: dict) -> None:
    model = tiny(name)
    modules, inputs = modules_of(model), sample(model, images=1)
    first = modules.vision_layer(-len(modules.geometry.whole_view_layers))
    noted: list[Tensor] = []
    handle = noted_input(first, noted)
    with prune(model, config(method, STEPS[:1])) as pruner:
        model(**inputs)
        kept = pruner.report[0].kept[0]
    handle.remove()
    patches = modules.geometry.view_patches
    target = max(1, int(0.4 * patches + 0.5))
    _, score = encoded(model, noted[0][:1], method, target, noted[0].shape[1] - patches)
    visual = is_visual(inputs)[0].nonzero()[:, 0]
    expected = visual[np.sort(np.argsort(-score, kind="stable")[:target])]
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rows_images_and_threads_of_a_batch_do_not_meet(method: dict) -> None:
    model = tiny("llava_clip")
    alone = [sample(model, images=1, seed=1), sample(model, images=2, seed=2), sample(model, images=0, seed=3)]
    with prune(model, config(method)) as pruner:
        model(**batch(alone))
        together = [entry.kept for entry in pruner.report]
        for inputs, kept in zip(alone[:2], together, strict=False):
            model(**inputs)
            for own, step in zip(pruner.report[0].kept, kept, strict=True):
                assert torch.equal(own, step)


def test_keeping_all_is_the_stock_model() -> None:
    model = tiny("llava_siglip")
    inputs = sample(model, images=1)
    plain = model(**inputs).logits
    for method in ({"name": "flowcut"}, {"name": "ipcv", "keep": 1.0}):
        with prune(model, config(method, [{"layer": 0, "keep_ratio": 1.0}])):
            torch.testing.assert_close(model(**inputs).logits, plain, **EXACT)


@pytest.mark.parametrize("name", PACKED)
def test_towers_that_pack_their_views_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(FlowpruneError, match="packs its views or merges patches inside: choose a method that"):
        prune(tiny(name), config({"name": "flowcut"})).__enter__()


@pytest.mark.parametrize("name", ["llava_dinov2", "vipllava"])
def test_towers_of_which_several_layers_are_read_are_refused(name: str) -> None:
    with pytest.raises(FlowpruneError, match="of which the language model reads several layers: choose a method that"):
        prune(tiny(name), config({"name": "ipcv"})).__enter__()


def test_the_inner_step_scores_by_the_language_models_flow() -> None:
    """FlowCut's second cut, by hand from the queries, keys and values of the layer before it."""
    model = tiny("llava_clip")
    modules, inputs = modules_of(model), sample(model, images=1)
    layer: nn.Module = modules.text_layers[1].self_attn
    made: dict[str, Tensor] = {}
    with prune(model, config({"name": "flowcut"}, [{"layer": 2, "keep_ratio": 0.3}])) as pruner:
        from multimodal.runtime import attention

        observers = attention._observers
        original = observers[layer]
        observers[layer] = lambda q, k, v, *rest: (made.update(q=q, k=k, v=v), original(q, k, v, *rest))
        model(**inputs)
        kept = pruner.report[0].kept[0]
    visual = is_visual(inputs)[0].nonzero()[:, 0]
    q, k, v = (made[name][0].double().numpy() for name in "qkv")
    heads, groups, d = len(q), len(q) // len(k), q.shape[-1]
    a = np.mean([softmax(k[h // groups][visual] @ q[h, -1] / d**0.5) for h in range(heads)], 0)
    s = np.mean([softmax(v[h][visual] @ v[h, -1] / d**0.5) for h in range(len(v))], 0)
    score = (a / a.sum() + s / s.sum()) * np.abs(v.mean(0)).sum(-1)[visual]
    count = max(1, int(0.3 * len(visual) + 0.5))
    assert torch.equal(kept, visual[np.sort(np.argsort(-score, kind="stable")[:count])])
