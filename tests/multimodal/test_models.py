"""Models that are copied, saved, switched, wrapped or shared while they are pruned, over every family."""

import copy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal import FlowpruneError, prune
from multimodal.testing.contracts import EXACT, PRUNES, THOROUGH, families, forced_tokens, generated, snapshot, spread
from multimodal.testing.oracles import tiny
from multimodal.testing.tiny_models import CACHE, FAMILIES, build, sample

SOME = (*THOROUGH, "gemma3", "qwen2_5_vl")


def prompt(model: PreTrainedModel) -> dict:
    return sample(model, images=1, text=4, seed=1, size=3)


def attention_of(model: PreTrainedModel) -> dict[str, str]:
    """The attention implementation of every part that has one."""
    parts = [(path, part) for path, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    return {path: part.config._attn_implementation for path, part in parts}


# copies


@families
def test_a_copy_made_inside_is_a_stock_model(name: str) -> None:
    """Inside the block and after; the original goes on being pruned, and the copy may be, too."""
    model = tiny(name)
    inputs = prompt(model)
    stock = model(**inputs).logits
    with prune(model, PRUNES) as pruner:
        pruned = model(**inputs).logits
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**inputs).logits, stock)
        assert len(pruner.report) == 1  # of the original's prompt
        torch.testing.assert_close(model(**inputs).logits, pruned, **EXACT)
        with prune(twin, PRUNES):
            torch.testing.assert_close(twin(**inputs).logits, pruned, **EXACT)
    assert torch.equal(twin(**inputs).logits, stock)
    assert attention_of(twin) == attention_of(model)
    assert torch.equal(model(**inputs).logits, stock)


@pytest.mark.parametrize("name", SOME)
def test_a_model_saved_inside_is_a_stock_model(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    inputs = prompt(model)
    stock = model(**inputs).logits
    with prune(model, PRUNES):
        pruned = model(**inputs).logits
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(**inputs).logits, stock, **EXACT)
        torch.testing.assert_close(model(**inputs).logits, pruned, **EXACT)
    assert "flowprune" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(loaded(**inputs).logits, stock, **EXACT)


# attention that is switched


@pytest.fixture
def ran_eagerly(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel], set[str]]:
    """Watches transformers' eager attention; tells which modules of a model have run it since it was last asked."""
    ran: set[nn.Module] = set()

    def watched(eager: Callable) -> Callable:
        def attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            ran.add(module)
            return eager(module, *args, **kwargs)

        return attend

    sources = {type(part).__module__ for name in FAMILIES for part in tiny(name).modules()}
    for source in map(sys.modules.get, sources):
        if hasattr(source, "eager_attention_forward"):
            monkeypatch.setattr(source, "eager_attention_forward", watched(source.eager_attention_forward))

    def tell(model: PreTrainedModel) -> set[str]:
        paths = {path for path, part in model.named_modules() if part in ran}
        ran.clear()
        return paths

    return tell


@pytest.mark.parametrize("name", [name for name, own in FAMILIES.items() if own.sdpa])
def test_attention_may_be_switched_inside(name: str, ran_eagerly: Callable) -> None:
    """It runs at once, in the tower, too, and is what the user has set once the block is left."""
    model, eager = build(name), tiny(name, "eager")
    inputs = prompt(model)
    stock = eager(**inputs).logits
    everywhere = ran_eagerly(eager)
    with prune(model, PRUNES):
        expected = model(**inputs).logits
        ran_eagerly(model)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
        assert ran_eagerly(model) == everywhere
    for _ in range(2):
        assert set(attention_of(model).values()) == {"eager"}
        torch.testing.assert_close(model(**inputs).logits, stock, **EXACT)
        assert ran_eagerly(model) == everywhere
        with prune(model, PRUNES):
            torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_attention_of_a_part_may_be_switched_inside(name: str, part: str, ran_eagerly: Callable) -> None:
    """The other part stays as it was."""
    model = build(name)
    inputs, switched = prompt(model), {part: "eager"}
    twin = build(name)
    twin.set_attn_implementation(switched)
    twin(**inputs)
    some = ran_eagerly(twin)
    with prune(model, PRUNES):
        expected = model(**inputs).logits
        model.set_attn_implementation(switched)
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
        assert ran_eagerly(model) == some
    assert attention_of(model) == attention_of(twin)
    model(**inputs)
    assert ran_eagerly(model) == some


# several models


@spread(shared=[True, False])
def test_two_models_are_pruned_at_once(name: str, shared: bool) -> None:
    """They take turns, may share one settings object, and leave their blocks in the order they came."""
    one = tiny(name)
    torch.manual_seed(1)
    other = type(one)(one.config).eval() if shared else build(name, seed=1)
    inputs = prompt(one)
    models, stock, alone = (one, other), [], []
    for model in models:
        stock.append(spoken([model], inputs)[0])
        with prune(model, PRUNES):
            alone.append(spoken([model], inputs)[0])
    before = [snapshot(model) for model in models]
    first, second = prune(one, PRUNES), prune(other, PRUNES)
    first.__enter__()
    second.__enter__()
    for ours, theirs in zip(spoken(models, inputs), alone, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    first.__exit__(None, None, None)
    for ours, theirs in zip(spoken(models, inputs), (stock[0], alone[1]), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    second.__exit__(None, None, None)
    assert [snapshot(model) for model in models] == before
    assert all(torch.equal(*pair) for pair in zip(spoken(models, inputs), stock, strict=True))


def spoken(models: Sequence[PreTrainedModel], inputs: dict) -> list[Tensor]:
    """The logits of two tokens after a prompt, of models that read it by turns."""
    outputs = [model(**inputs) for model in models]
    steps = []
    for token in forced_tokens(1, steps=2).T:
        pairs = zip(models, outputs, strict=True)
        outputs = [model(input_ids=token[:, None], **{CACHE: output[CACHE]}) for model, output in pairs]
        steps.append([output.logits for output in outputs])
    return [torch.cat(own, 1) for own in zip(*steps, strict=True)]


# models that are wrapped


class Wrapped(nn.Module):
    """As PEFT wraps a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> PreTrainedModel:
        return self.base_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.generate(*args, **kwargs)


@families
def test_a_wrapped_model_is_pruned(name: str) -> None:
    model = tiny(name)
    inputs = prompt(model)
    with prune(model, PRUNES) as pruner:
        expected, report = generated(model, inputs, max_new_tokens=2), pruner.report
    wrapped = Wrapped(model)
    before = snapshot(wrapped)
    with prune(wrapped, PRUNES) as pruner:
        found = generated(wrapped, inputs, max_new_tokens=2)
        assert pruner.report[0].retention == report[0].retention < 1
        with pytest.raises(FlowpruneError, match="already"), prune(model, PRUNES):
            pass
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    assert snapshot(wrapped) == before


@pytest.mark.parametrize("name", SOME)
def test_a_model_with_adapters_is_pruned(name: str) -> None:
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build(name), adapters).eval()
    inputs = prompt(model.get_base_model())
    with prune(model, PRUNES):
        found = model(**inputs).logits
    merged = model.merge_and_unload()
    with prune(merged, PRUNES):
        torch.testing.assert_close(found, merged(**inputs).logits, atol=1e-4, rtol=0)


# threads


def test_the_report_is_read_from_another_thread() -> None:
    """As where answers are streamed: one thread runs the model, another reads."""
    model = tiny("llava_siglip")
    inputs = prompt(model)
    with prune(model, PRUNES) as pruner:
        model(**inputs)
        [expected] = pruner.report
    for runs, reads in ((in_a_thread, at_once), (at_once, in_a_thread), (in_a_thread, in_a_thread)):
        with prune(model, PRUNES) as pruner:
            runs(lambda: generated(model, inputs))
            [found] = reads(lambda pruner=pruner: pruner.report)
        assert found.retention == expected.retention
        assert all(torch.equal(*pair) for pair in zip(found.kept, expected.kept, strict=True))


def at_once(call: Callable[[], Any]) -> Any:
    return call()


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.no_grad()(call)).result()
