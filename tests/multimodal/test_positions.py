"""Positions that layers see, and recycled tokens from pixels to logits."""

import math
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from multimodal import prune
from multimodal.testing.contracts import EXACT, forced_tokens, generated, mixed_samples, refused, run_pruned, spread
from multimodal.testing.oracles import (
    SCHEDULES,
    config,
    decoder,
    encode,
    grid_places,
    recycle_exactly,
    text_model,
    tiny,
    tokens_of,
    vision_maps,
)
from multimodal.testing.tiny_models import CACHE, FAMILIES, LAYERS, batch, is_visual, sample

PLAIN = [name for name, own in FAMILIES.items() if own.plain_decoder]


class Seen:
    """What each layer of the language model was given: rotary angles of new tokens, masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.forwards: list[list[dict]] = []
        text = text_model(model)
        self.handles = [
            text.layers[number].self_attn.register_forward_pre_hook(self._note(number), with_kwargs=True)
            for number in range(LAYERS)
        ]
        self.rotary = text.rotary_emb

    def _note(self, number: int) -> Any:
        def note(_: Any, args: tuple, kwargs: dict) -> None:
            if number == 0:
                self.forwards.append([])
            self.forwards[-1].append(kwargs)

        return note

    def assert_positions(self, forward: int, layer: int, row: int, positions: list[int]) -> None:
        cos, sin = self.forwards[forward][layer]["position_embeddings"]
        row = row if len(cos) > 1 else 0
        expected = self.rotary(cos, torch.tensor([positions]))
        torch.testing.assert_close(cos[row, -len(positions) :], expected[0][0])
        torch.testing.assert_close(sin[row, -len(positions) :], expected[1][0])


@spread(PLAIN, positions=["compact", "original"], schedule=list(SCHEDULES.values()), by_generate=[True, False])
def test_positions_that_layers_see(name: str, positions: str, schedule: tuple, by_generate: bool) -> None:
    model = tiny(name)
    samples = mixed_samples(model)
    inputs = batch(samples)
    seen = Seen(model)
    with prune(model, config(schedule, positions=positions)) as pruner:
        if by_generate:
            generated(model, inputs)
        else:
            cache = model(**inputs)[CACHE]
            for token in forced_tokens(len(samples)).T:
                cache = model(input_ids=token[:, None], **{CACHE: cache})[CACHE]
    for handle in seen.handles:
        handle.remove()
    for row, alone in enumerate(samples):
        visual = is_visual(alone)[0]
        length = len(visual)
        # a plain forward counts padding as positions, generate() does not; `compact` counts from 0 if it cuts
        padding = 0 if by_generate else inputs["input_ids"].shape[1] - length
        number = {place: place + padding for place in range(length)}
        following = length + padding
        if positions == "compact" and schedule[0][0] == 0:
            kept = set(pruner.report[row].kept[0].tolist())
            left = [place for place in range(length) if not visual[place] or place in kept]
            number = {place: new for new, place in enumerate(left)}
            following = len(left)
        for layer in range(LAYERS):
            left = list(range(length))
            for (start, _), kept_places in zip(schedule, pruner.report[row].kept, strict=True):
                if start <= layer:
                    left = [place for place in range(length) if not visual[place] or place in set(kept_places.tolist())]
            seen.assert_positions(0, layer, row, [number[place] for place in left])
            for step in range(3):
                seen.assert_positions(1 + step, layer, row, [following + step])


@spread(PLAIN, attention=["sdpa", "eager", "fake_flash"], positions=["compact", "original"], weight=[0.6, 0.0])
def test_recycling_from_pixels_to_logits(name: str, attention: str, positions: str, weight: float) -> None:
    """Everything recomputed: map, exact count, merging, positions, and w · log n on recycled keys in every layer."""
    model = tiny(name, attention)
    samples = [sample(model, images=1, seed=1, size=1), sample(model, images=2, seed=2)]
    forced = forced_tokens(2)
    cell = 2.5
    chosen = config(recycling_cell=cell, recycling_weight=weight, positions=positions)
    if refused(model, attention, chosen):
        return
    hidden, _, decoded, report = run_pruned(model, batch(samples), chosen, forced)

    text = text_model(model)
    for row, inputs in enumerate(samples):
        visual = is_visual(inputs)[0]
        length = len(visual)
        new = list(range(length, length + forced.shape[1]))
        states = text.embed_tokens(torch.cat([inputs["input_ids"][0], forced[row]]))
        sizes = torch.ones(len(states))
        places = visual.nonzero()[:, 0].tolist()
        kept: list[list[int]] = [[] for _ in chosen.schedule]
        layouts = tokens_of(model, inputs)
        maps = vision_maps(model, inputs, threshold=1.0, weight=0.5)
        for features, values, tokens in zip(encode(model, inputs), maps, layouts, strict=True):
            own, places = np.array(places[: len(values)]), places[len(values) :]
            states[own] = features
            patch = ~np.isnan(values)
            count = math.floor(chosen.schedule[0].keep_ratio * len(values) + 0.5)
            merged = recycle_exactly(
                features.numpy()[patch], values[patch], grid_places(tokens), cell, count - int((~patch).sum())
            )
            for token, feature, _, size in merged:
                states[own[patch][token]] = torch.from_numpy(feature)
                sizes[own[patch][token]] = size
            left = {token: value for token, _, value, _ in merged}
            for number, step in enumerate(chosen.schedule):
                if number > 0:
                    count = math.floor(step.keep_ratio * count + 0.5)
                    best = sorted(left, key=lambda token: (-left[token], token))[: count - int((~patch).sum())]
                    left = {token: left[token] for token in best}
                kept[number] += sorted([*own[~patch].tolist(), *own[patch][list(left)].tolist()])
        assert [step.tolist() for step in report[row].kept] == kept
        assert (sizes > 1).any()

        text_places = (~visual).nonzero()[:, 0].tolist()
        alive = [[]] * LAYERS
        for step, left_places in zip(chosen.schedule, kept, strict=True):
            alive[step.layer :] = [sorted(text_places + left_places) + new] * (LAYERS - step.layer)
        numbers = list(range(len(states)))
        if positions == "compact":
            numbers = [alive[0].index(place) if place in alive[0] else -1 for place in numbers]
        expected = decoder(text, states, numbers, weight * sizes.log(), alive)[-len(new) - 1 :]
        torch.testing.assert_close(hidden[row, -1], expected[0], **EXACT)
        torch.testing.assert_close(decoded[row], model.lm_head(expected[1:]), **EXACT)
