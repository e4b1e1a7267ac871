"""What pruning costs the host, counted where it can be counted without a GPU: operators that are dispatched."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from multimodal import PruningConfig, Recordings, prune
from multimodal.recording import prompts, tokens, tower
from multimodal.recording.recorded import Recorded
from multimodal.testing.tiny_models import CACHE

IMAGE, TOKENS = 7, 576
VIEWS = {"alias", "as_strided", "detach", "expand", "lift_fresh", "permute", "select", "slice", "split", "squeeze", "t"}
VIEWS |= {"split_with_sizes", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view"}  # they launch nothing
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal", "is_nonzero"}


class Dispatched(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[function._schema.name.removeprefix("aten::")] += 1
        return function(*args, **(kwargs or {}))


def dispatched(call: Callable[[], object]) -> Counter[str]:
    call()  # what is made once is made
    with Dispatched() as mode:
        call()
    return mode.names


def launched(names: Counter[str]) -> int:
    return sum(number for name, number in names.items() if name not in VIEWS)


def waiting(names: Counter[str]) -> int:
    return sum(names[name] for name in WAITS)


@cache
def thin_llava() -> PreTrainedModel:
    """LLaVA-1.5's shape: 24 and 32 layers, 16 heads in the tower, 576 visual tokens; 64 wide."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=32, num_attention_heads=4
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    return model


def first_token(model: PreTrainedModel, ids: torch.Tensor, **pixels: torch.Tensor) -> Callable[[], object]:
    told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    return lambda: model.generate(**told, max_new_tokens=1, do_sample=False)


PIXELS, IDS = torch.zeros(1, 3, 336, 336), torch.tensor([[9] * 20 + [IMAGE] * TOKENS + [10] * 20])


@pytest.fixture(scope="module")
def stock() -> tuple[Counter[str], ...]:
    """What the stock model dispatches: for the prompt, for one that is as short as the pruned one, for the tower."""
    model = thin_llava()
    return (
        dispatched(first_token(model, IDS, pixel_values=PIXELS)),
        dispatched(first_token(model, torch.full((1, 97), 9))),
        dispatched(lambda: model.model.get_image_features(PIXELS)),
    )


@pytest.mark.parametrize(
    ("fields", "positions"),
    [
        ({"entropy_weight": 0.0, "query_threshold": 30.0}, "original"),
        ({"entropy_weight": -0.5, "query_threshold": 0.5}, "compact"),
        ({"entropy_weight": 0.0, "query_threshold": 1.5, "recycling_weight": 0.0}, "original"),
    ],
    ids=str,
)
def test_a_pruned_first_token_adds_few_operators_and_no_wait(fields: dict, positions: str, stock: tuple) -> None:
    """Over the tower and a prompt that is as short already: three steps, with recycling."""
    model = thin_llava()
    schedule = [{"layer": 0, "keep_ratio": 0.2}, {"layer": 10, "keep_ratio": 0.7}, {"layer": 20, "keep_ratio": 0.5}]
    config = PruningConfig(
        method={"name": "vflowopt", "recycling_cell": 6.0, **fields},
        schedule=schedule,
        positions=positions,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    unpruned, short, tower = stock
    with prune(model, config) as pruner:
        pruned = dispatched(first_token(model, IDS, pixel_values=PIXELS))
    assert [len(kept) for kept in pruner.report[0].kept] == [115, 81, 41]
    assert launched(pruned) - launched(short) - launched(tower) <= 150
    assert waiting(pruned) <= waiting(unpruned) + 1


def test_a_decoded_token_costs_what_it_costs_unpruned() -> None:
    model = thin_llava()
    ids = torch.tensor([[9] * 5 + [IMAGE] * TOKENS + [10] * 5])
    config = PruningConfig(method={"name": "vflowopt"}, schedule=[{"layer": 0, "keep_ratio": 0.2}])

    def step() -> Counter[str]:
        cache = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 336, 336))[CACHE]
        return dispatched(lambda: model(input_ids=torch.tensor([[9]]), **{CACHE: cache}))

    stock = step()
    with prune(model, config):
        pruned = step()
    assert launched(pruned) <= launched(stock) + 5
    assert waiting(pruned) <= waiting(stock)


class Graph(Recorded):
    """As on a GPU, a replay dispatches nothing; its numbers are those of the first run."""

    def replay(self, *given: Any) -> Any:
        return self.output


def test_recordings_leave_the_host_next_to_nothing(monkeypatch: pytest.MonkeyPatch, stock: tuple) -> None:
    """Of the tower's 24 and the language model's 32 layers; what generate() does is as ever."""
    for module in (prompts, tokens, tower):
        monkeypatch.setattr(module, "Recorded", Graph)
    model, recordings = thin_llava(), Recordings()
    schedule = [{"layer": 0, "keep_ratio": 0.2}, {"layer": 10, "keep_ratio": 0.7}, {"layer": 20, "keep_ratio": 0.5}]
    config = PruningConfig(method={"name": "vflowopt", "query_threshold": 30.0}, schedule=schedule)
    generate = first_token(model, IDS, pixel_values=PIXELS)
    with prune(model, config, recordings=recordings):
        prompt = dispatched(generate)
        cache = model(input_ids=IDS, pixel_values=PIXELS)[CACHE]
        token = dispatched(lambda: model(input_ids=torch.tensor([[9]]), **{CACHE: cache}))
    unpruned = stock[0]
    assert launched(prompt) <= 70
    assert waiting(prompt) <= waiting(unpruned) + 1
    assert launched(token) <= 12 and not waiting(token)
