"""Random conversations against the stock model under masks of our own.

A program is a batch of prompts and what is done next: tokens and turns are read, rows of the cache are reordered,
selected and repeated, its last words are cropped, copies of it go on, blocks are left and entered. The oracle keeps of
every row the whole unpruned conversation, its pixels and positions, and which visual tokens the reports say were kept.
"""

import copy
import pickle
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from multimodal import PruningConfig, prune
from multimodal.testing.contracts import ROTATED
from multimodal.testing.oracles import config, noted_positions, run_hidden
from multimodal.testing.tiny_models import (
    CACHE,
    LAYERS,
    batch,
    build,
    extended,
    family,
    is_visual,
    media_of,
    sample,
    token_inputs,
)
from multimodal.testing.tiny_models.family import FIRST_WORD, WORDS

EXAMPLES = {"llava_siglip": 30, "llava_onevision": 15, "qwen2_5_vl": 40}
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)

ratios = st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0])
schedules = st.dictionaries(st.integers(0, LAYERS - 1), ratios, min_size=1, max_size=3)
methods = st.sampled_from([{"entropy_weight": -1.0}, {"entropy_weight": 2.0}, {"name": "uniform"}, {"name": "random"}])
prompts = st.fixed_dictionaries(
    {"images": st.sampled_from([1, 0, 2]), "size": st.integers(0, 3), "text": st.integers(2, 6)}
)
seeds = st.integers(0, 99)
operations = st.one_of(
    st.tuples(st.just("tokens"), st.integers(1, 3), seeds),
    st.tuples(st.just("turn"), prompts, seeds),
    st.tuples(st.just("reorder"), seeds),
    st.tuples(st.just("select"), seeds),
    st.tuples(st.just("repeat")),
    st.tuples(st.just("crop"), st.integers(1, 4)),
    st.tuples(st.just("copy"), st.booleans()),
    st.tuples(st.just("block")),
)
programs = st.fixed_dictionaries(
    {
        "weights": st.integers(0, 1),
        "method": methods,
        "schedule": schedules,
        "compact": st.booleans(),
        "masks": st.booleans(),
        "rows": st.lists(prompts, min_size=1, max_size=3),
        "then": st.lists(operations, min_size=1, max_size=6),
    }
)


@cache
def model_and_twin(name: str, seed: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Two of the same weights: one is pruned, the other stays as it is."""
    return build(name, seed=seed), build(name, seed=seed)


class Rows:
    """What the oracle knows of a batch of conversations ``[B, L]``, padding included.

    Args:
        stock: the model that is not pruned.
        chosen: how the other one is.
    """

    def __init__(self, stock: PreTrainedModel, chosen: PruningConfig) -> None:
        self.stock, self.chosen = stock, chosen
        self.ids = self.valid = torch.zeros(0, 0, dtype=torch.long)
        self.positions = torch.zeros(family(stock).rotary_axes, 0, 0, dtype=torch.long)
        self.media: list[list[dict]] = []
        self.kept: list[list[Tensor]] = []  # by row and step, in the row without its padding

    def append(self, inputs: dict, samples: list[dict]) -> None:
        """What the next call reads: inputs of all rows, and the samples they were made of."""
        first, shape = not self.media, inputs["input_ids"].shape
        if first:
            self.ids = self.valid = torch.zeros(shape[0], 0, dtype=torch.long)
            self.positions = self.positions.new_zeros(len(self.positions), shape[0], 0)
            self.media = [[] for _ in samples]
            self.kept = [[torch.zeros(0, dtype=torch.long)] * len(self.chosen.schedule) for _ in samples]
        new = self._first_positions(inputs) if first else self.next[:, None] + torch.arange(shape[1])
        self.positions = torch.cat([self.positions, new.expand(len(self.positions), *shape)], 2)
        self.ids = torch.cat([self.ids, inputs["input_ids"]], 1)
        self.valid = torch.cat([self.valid, inputs["attention_mask"]], 1)
        for own, one in zip(self.media, samples, strict=True):
            own.append({key: value for key, value in one.items() if "pixel" in key or "image" in key})

    def prune(self, kept: list[tuple[Tensor, ...]], new: int) -> None:
        """What a report says was kept of the last ``new`` tokens; compact positions number what is left."""
        self.kept = [
            [torch.cat(pair) for pair in zip(*pairs, strict=True)] for pairs in zip(self.kept, kept, strict=True)
        ]
        if self.chosen.positions == "original" or self.chosen.schedule[0].layer > 0:
            return
        for row, steps in enumerate(self.kept):
            left = self.valid[row].bool() & ~is_visual({"input_ids": self.ids})[row]
            left[self.valid[row].nonzero()[:, 0][steps[0]]] = True
            start = self.positions[0, row, -new]
            self.positions[:, row, -new:] = start + (left[-new:].cumsum(0) - 1).clamp(min=0)

    def pick(self, rows: list[int]) -> None:
        self.ids, self.valid, self.positions = self.ids[rows], self.valid[rows], self.positions[:, rows]
        self.media, self.kept = [list(self.media[row]) for row in rows], [list(self.kept[row]) for row in rows]

    def crop(self, tokens: int) -> None:
        self.ids, self.valid = self.ids[:, :-tokens], self.valid[:, :-tokens]
        self.positions = self.positions[..., :-tokens]

    @property
    def next(self) -> Tensor:
        """The position that follows each row ``[B]``."""
        return self.positions[..., -1].amax(0) + 1

    @property
    def last_words(self) -> int:
        """Words that end every row."""
        words = self.valid.bool() & ~is_visual({"input_ids": self.ids})
        return int(words.flip(1).long().cumprod(1).sum(1).min())

    def last_logits(self) -> Tensor:
        """Of the last token of each row, with what was pruned hidden."""
        inputs = token_inputs(self.stock, self.ids) | {"attention_mask": self.valid}
        inputs |= media_of([part for row in self.media for part in row])
        inputs["position_ids"] = self.positions[0] if len(self.positions) == 1 else self.positions
        schedule = [(step.layer, step.keep_ratio) for step in self.chosen.schedule]
        return run_hidden(self.stock, inputs, self.kept, schedule)[0][:, -1]

    def _first_positions(self, inputs: dict) -> Tensor:
        """The stock model's, which counts padding where there is one rotary axis."""
        if len(self.positions) == 1:
            return torch.arange(inputs["input_ids"].shape[1])
        with noted_positions(self.stock) as noted:
            self.stock(**inputs)
        return noted[0]


class Talk:
    """Runs a program; every call is held against the oracle."""

    def __init__(self, name: str, program: dict) -> None:
        self.model, stock = model_and_twin(name, program["weights"])
        axes = family(stock).rotary_axes
        positions = "compact" if program["compact"] and axes == 1 else "original"
        self.chosen = config(sorted(program["schedule"].items()), positions=positions, **program["method"])
        self.first, self.then = program["rows"], program["then"]
        if axes > 1:  # the stock model of several axes goes by the last image it has seen: there must be one
            self.first = [self.first[0] | {"images": max(self.first[0]["images"], 1)}, *self.first[1:]]
        # it takes no mask over what was read before; and the padding of words alone is noted nowhere else
        self.masks = axes == 1 and (program["masks"] or not any(row["images"] for row in self.first))
        self.rows, self.cache, self.blocks = Rows(stock, self.chosen), None, ExitStack()

    def run(self) -> None:
        with self.blocks:
            self.block()
            self.read([sample(self.model, **row, seed=number) for number, row in enumerate(self.first)])
            for name, *arguments in self.then:
                getattr(self, name)(*arguments)
            self.tokens(1, 0)

    def read(self, samples: list[dict]) -> None:
        inputs = batch(samples)
        new = inputs["input_ids"].shape[1]
        self.rows.append(inputs, samples)
        if self.cache is not None:
            mask = self.rows.valid if self.masks else None
            inputs = inputs | {"attention_mask": mask, CACHE: self.cache}
        output = self.model(**inputs)
        self.cache = output[CACHE]
        if is_visual(inputs).any():
            self.rows.prune([entry.kept for entry in self.pruner.report], new)
        assert self.cache.get_seq_length() == self.rows.ids.shape[1]
        torch.testing.assert_close(output.logits[:, -1], self.rows.last_logits(), **ROTATED)

    # what a program may do

    def block(self) -> None:
        """Leave the block and enter another."""
        self.blocks.pop_all().close()
        self.pruner = self.blocks.enter_context(prune(self.model, self.chosen))

    def tokens(self, number: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(FIRST_WORD, WORDS, (len(self.rows.ids), number), generator=generator)
        self.read([token_inputs(self.model, own[None]) for own in words])

    def turn(self, asked: dict, seed: int) -> None:
        """Every row is asked something else; shorter turns are padded where a mask says so, else longer."""
        samples = []
        for row in range(len(self.rows.ids)):
            images, size = (asked["images"] + row) % 2, asked["size"] + row
            samples.append(sample(self.model, images=images, size=size, text=asked["text"], seed=seed + row))
        if not self.masks or self.chosen.positions == "compact":
            longest = max(own["input_ids"].shape[1] for own in samples)
            missing = [longest - own["input_ids"].shape[1] for own in samples]
            words = [torch.full((1, number), 11) for number in missing]
            samples = [extended(self.model, *pair) for pair in zip(samples, words, strict=True)]
        self.read(samples)

    def reorder(self, seed: int) -> None:
        number = len(self.rows.ids)
        rows = torch.randint(number, (number,), generator=torch.Generator().manual_seed(seed)).tolist()
        self.cache.reorder_cache(torch.tensor(rows))
        self.rows.pick(rows)

    def select(self, seed: int) -> None:
        order = torch.randperm(len(self.rows.ids), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = order[: 1 + seed % len(order)]
        self.cache.batch_select_indices(torch.tensor(rows))
        self.rows.pick(rows)

    def repeat(self) -> None:
        if (number := len(self.rows.ids)) > 2:
            return
        self.cache.batch_repeat_interleave(2)
        self.rows.pick([row for row in range(number) for _ in range(2)])

    def crop(self, tokens: int) -> None:
        tokens = min(tokens, self.rows.last_words - 1)
        if tokens > 0:
            self.cache.crop(-tokens)
            self.rows.crop(tokens)

    def copy(self, pickled: bool) -> None:
        """Go on with a copy; what the original reads then is nothing to it."""
        original = self.cache
        self.cache = pickle.loads(pickle.dumps(original)) if pickled else copy.deepcopy(original)
        self.model(input_ids=torch.full((len(self.rows.ids), 2), 13), **{CACHE: original})


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_conversation_is_that_of_the_masked_model(name: str) -> None:
    @settings(max_examples=EXAMPLES[name], suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
    @given(programs)
    def run(program: dict) -> None:
        Talk(name, program).run()

    run()
