"""Caches, dtypes, threads, offloaded weights and compiled models."""

import threading
from typing import Any

import pytest
import torch
from transformers import Cache, DynamicCache, QuantizedCache
from transformers.cache_utils import QuantizedLayer

from multimodal import prune
from multimodal.testing.contracts import EXACT, forced_tokens, generated, mixed_samples, run_pruned
from multimodal.testing.oracles import config, tiny
from multimodal.testing.tiny_models import CACHE, CAPTURES_BY_THREAD, LAYERS, batch, build, sample

CHOSEN = config(recycling_cell=2.5, recycling_weight=0.6)
SOME = ["llava_siglip", "qwen2_5_vl"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    model = build(name).to(dtype)
    inputs = batch(mixed_samples(model))
    stock = generated(model, inputs)
    with prune(model, config([(0, 1.0), (2, 1.0)], recycling_cell=1.0, recycling_weight=1.0)):
        same = generated(model, inputs)
    torch.testing.assert_close(same.logits[0], stock.logits[0], atol=0.1, rtol=0.1)
    with prune(model, CHOSEN) as pruner:
        half = generated(model, inputs)
    assert all(logits.dtype == torch.float32 and logits.isfinite().all() for logits in half.logits)
    exact = build(name)
    full = run_pruned(exact, batch(mixed_samples(exact)), CHOSEN)
    shared, kept = 0, 0
    for ours, theirs in zip(pruner.report, full[3], strict=True):  # the map is made in float32
        assert ours.kv_bytes * 2 == theirs.kv_bytes
        for a, b in zip(ours.kept, theirs.kept, strict=True):
            assert len(a) == len(b)
            shared, kept = shared + len(set(a.tolist()) & set(b.tolist())), kept + len(a)
    assert shared >= 0.8 * kept


@pytest.mark.parametrize("name", SOME)
def test_several_threads_may_use_the_model_at_once(name: str) -> None:
    if name == "llava_siglip" and not CAPTURES_BY_THREAD:
        pytest.skip("this transformers hands one thread's hidden states of a vision tower to another")
    model = build(name)
    samples = [sample(model, images=1 + number % 2, seed=number, size=number, text=4 + number) for number in range(6)]
    with prune(model, CHOSEN) as pruner:
        alone = []
        for inputs in samples:
            alone.append((model(**inputs).logits, pruner.report))
        found: dict[int, Any] = {}
        start = threading.Barrier(len(samples))

        def read(number: int) -> None:
            start.wait()
            with torch.no_grad():  # gradients are switched by thread
                for _ in range(5):
                    found[number] = (model(**samples[number]).logits, pruner.report)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(len(samples))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, (logits, report) in enumerate(alone):
        torch.testing.assert_close(found[number][0], logits, **EXACT)
        assert [len(kept) for kept in found[number][1][0].kept] == [len(kept) for kept in report[0].kept]


class Streamer:
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def test_streaming() -> None:
    model, streamer = tiny("llava_siglip"), Streamer()
    with prune(model, CHOSEN):
        output = generated(model, sample(model), streamer=streamer)
    assert streamer.tokens == [*output.sequences[0].tolist(), -1]


@pytest.mark.parametrize("name", ["llava_clip", "qwen2_5_vl"])  # offloaded SigLIP towers fail without us
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_offloaded_weights(name: str, where: str, tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build(name)
    inputs = batch(mixed_samples(model))
    with prune(model, CHOSEN):
        expected = generated(model, inputs)
    if where == "memory":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    with prune(model, CHOSEN):
        offloaded = generated(model, inputs)
    assert torch.equal(offloaded.sequences, expected.sequences)


class Rounding(QuantizedLayer):
    """A quantised layer that needs no kernel: what it stores is rounded."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return (tensor * 1000).round()

    def _dequantize(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor / 1000


class RoundingCache(QuantizedCache):
    def __init__(self, layers: int) -> None:
        Cache.__init__(self, layers=[Rounding(residual_length=2) for _ in range(layers)])


def test_quantised_caches() -> None:
    model = tiny("llava_siglip")
    inputs = sample(model, images=2)
    with prune(model, CHOSEN) as pruner:
        expected, kept = generated(model, inputs), pruner.report[0].kept
        quantised = generated(model, inputs, **{CACHE: RoundingCache(LAYERS)})
        assert all(torch.equal(a, b) for a, b in zip(kept, pruner.report[0].kept, strict=True))
    torch.testing.assert_close(quantised.logits[0], expected.logits[0], **EXACT)  # quantised once the prompt is read
    for ours, theirs in zip(quantised.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="transformers offloads caches from a GPU")
def test_offloaded_caches() -> None:
    model = tiny("llava_siglip")
    inputs = sample(model, images=2)
    with prune(model, CHOSEN):
        expected = generated(model, inputs)
        offloaded = generated(model, inputs, **{CACHE: DynamicCache(offloading=True)})
    assert torch.equal(offloaded.sequences, expected.sequences)


def test_compiled_models_prune_alike() -> None:
    model = build("llava_clip")
    inputs, forced = sample(model), forced_tokens(1, steps=1)
    _, logits, decoded, _ = run_pruned(model, inputs, CHOSEN, forced)
    compiled = torch.compile(model, backend="eager")
    with prune(model, CHOSEN):
        output = compiled(**inputs)
        torch.testing.assert_close(output.logits, logits, **EXACT)
        output = compiled(input_ids=forced, **{CACHE: output[CACHE]})
        torch.testing.assert_close(output.logits, decoded, **EXACT)
