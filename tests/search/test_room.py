"""How many samples one prefill reads, and which of them stay on the device."""

from types import SimpleNamespace

import pytest
import torch
from test_objective import CONFIGS, objective
from torch.utils._python_dispatch import TorchDispatchMode

import search.batches
import search.room
from multimodal.testing.oracles import tiny
from search.batches import Batch, make_batch, placed
from search.room import ROWS, TOKENS, grouped, prefill_bytes

CPU, GPU = torch.device("cpu"), torch.device("meta")  # a device that is no CPU, and that every machine has
SEVEN_B = SimpleNamespace(
    hidden_size=4096,
    intermediate_size=11008,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    _attn_implementation="sdpa",
)


def groups(lengths: list[int], device: torch.device, batch_size="auto") -> list[list[int]]:
    return grouped(lengths, batch_size, device, SEVEN_B, 2)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_number_is_how_many_samples_of_similar_length_are_read_at_once(device):
    assert groups([7, 3, 9, 3, 8], device, 2) == [[1, 3], [0, 4], [2]]


def test_on_a_cpu_auto_is_sixteen_samples():
    assert [len(group) for group in groups([640] * 40, CPU)] == [ROWS, ROWS, 8] == [16, 16, 8]


@pytest.mark.parametrize(("tokens", "prefills"), [(640, 1), (2992, 3), (7435, 8), (70_000, 60)])
def test_on_a_gpu_auto_fills_it(tokens, prefills, monkeypatch):
    monkeypatch.setattr(search.room, "free_bytes", lambda device: 60 * 2**30)  # beside a 7B model on 80 GB
    found = groups([tokens] * 60, GPU)
    assert len(found) == prefills and sorted(number for group in found for number in group) == list(range(60))
    assert all(len(group) == 1 or len(group) * tokens <= TOKENS for group in found)


def test_memory_bounds_what_auto_reads_at_once(monkeypatch):
    free = 2 * prefill_bytes(SEVEN_B, 5, 640, 2)
    monkeypatch.setattr(search.room, "free_bytes", lambda device: free)
    assert [len(group) for group in groups([640] * 12, GPU)] == [5, 5, 2]
    monkeypatch.setattr(search.room, "free_bytes", lambda device: 1)
    assert [len(group) for group in groups([640] * 3, GPU)] == [1, 1, 1]


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple] = {}
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.held[storage.data_ptr()] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.held = {at: own for at, own in self.held.items() if not own[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return result


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava_siglip", "qwen2_5_vl", "gemma3"])
def test_no_prefill_takes_more_than_the_bound(name, attention):
    of = objective(name, attention, batch_size=5)
    [batch] = of.batches
    text = tiny(name, attention).config.get_text_config()
    bound = prefill_bytes(text, *batch.embeds.shape[:2], 4)
    with torch.no_grad(), Peak() as peak:
        of.prefill(batch, None)
    assert peak.most <= bound
    assert peak.most > bound / 20  # and it is one


def test_samples_stay_on_a_gpu_while_they_fit_and_the_others_are_pinned(monkeypatch):
    whole = objective(batch_size=1)
    batches = [make_batch(whole._samples, [number]) for number in range(5)]
    pinned = []
    monkeypatch.setattr(Batch, "pinned", lambda batch: pinned.append(batch.numbers) or batch)
    held = 2 * batches[0].bytes  # of samples of several sizes
    monkeypatch.setattr(search.batches, "free_bytes", lambda device: held / search.batches.HELD)
    found = placed(batches, GPU)
    on_device = [batch for batch in found if batch.embeds.device == GPU]
    assert 0 < sum(batch.bytes for batch in on_device) <= held
    assert all(batch.to(GPU) is batch for batch in on_device)
    assert [batch.numbers for batch in found] == [batch.numbers for batch in batches]
    tensors = [*on_device[0].text_inputs.values(), on_device[0].reference, *on_device[0].evidence[0].tensors().values()]
    assert {tensor.device for tensor in tensors} == {GPU}
    assert not pinned  # no CUDA here
    whole.device, whole.batches = GPU, found
    mib = sum(batch.bytes for batch in on_device) / 2**20
    assert whole.placement == f"a trial is 5 prefills of at most 1 samples, {mib:,.0f} MiB of which stay on meta"
    assert placed(batches, CPU) == batches and objective().evaluate(CONFIGS["compact"])
