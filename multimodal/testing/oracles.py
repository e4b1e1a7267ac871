"""Slow, obvious re-computations that tests compare the library with. Nothing here calls what it checks."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal import PruningConfig
from multimodal.testing import tiny_models
from multimodal.testing.tiny_models.family import Token

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)

LAYER_0_AND_INNER = ((0, 0.7), (2, 0.6), (4, 0.5))
INNER_ONLY = ((2, 0.6), (3, 0.5))
LAYER_0_ONLY = ((0, 0.4),)
SCHEDULES = {"layer 0 and inner": LAYER_0_AND_INNER, "inner only": INNER_ONLY, "layer 0 only": LAYER_0_ONLY}


@cache
def tiny(name: str, attention: str = "sdpa") -> PreTrainedModel:
    """A tiny model, shared by all tests: prune() must give it back as it was."""
    return tiny_models.build(name, attention)


def config(schedule: Sequence[tuple[int, float]] = LAYER_0_AND_INNER, **fields: Any) -> PruningConfig:
    """A config; fields that are not its own go to the method, which recycles only if asked."""
    own = {key: fields.pop(key) for key in ("positions", "image_mean", "image_std", "model") if key in fields}
    method = {"name": "vflowopt", **fields}
    if method["name"] == "vflowopt":
        method = {"query_threshold": 1.0, "entropy_weight": 0.5, "recycling_cell": None} | method
    steps = [{"layer": layer, "keep_ratio": ratio} for layer, ratio in schedule]
    return PruningConfig(method=method, schedule=steps, **({"image_mean": MEAN, "image_std": STD} | own))


# masked attention


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Hooks that go away again."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_stock(model: PreTrainedModel, inputs: dict) -> tuple[list[Tensor], Tensor]:
    """What each layer of the stock model lets each token see ``[B, L, L]``, by what it is given; the final states."""
    seen: list[Any] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
        for layer in text_layers(model)
    ]
    with hooked(handles):
        final = model.model(**inputs, use_cache=False).last_hidden_state
    rows, length = inputs["input_ids"].shape
    causal = torch.ones(rows, length, length, dtype=torch.bool).tril()
    masks = [causal if m is None else (m if m.dtype == torch.bool else m == 0)[:, 0].expand_as(causal) for m in seen]
    return masks, final


def stock_masks(model: PreTrainedModel, inputs: dict) -> list[Tensor]:
    """What each layer of the stock model lets each token see ``[B, L, L]``."""
    return run_stock(model, inputs)[0]


def attention_masks(
    stock: Sequence[Tensor], inputs: dict, kept: Sequence[Sequence[Tensor]], schedule: Sequence[tuple[int, float]]
) -> list[Tensor]:
    """Each layer's additive mask ``[B, 1, L, L]``: the stock model's, with pruned tokens hidden.

    Args:
        stock: see :func:`run_stock`.
        inputs: of the unpruned batch, padded on the left.
        kept: for each row and step the kept visual tokens, in the row's own coordinates.
        schedule: pruning steps.
    """
    valid, is_visual = inputs["attention_mask"].bool(), tiny_models.is_visual(inputs)
    masks = []
    for layer, allowed in enumerate(stock):
        seen = valid.clone()
        for row, steps in enumerate(kept):
            for (start, _), places in zip(schedule, steps, strict=True):
                if layer >= start:
                    seen[row] &= ~is_visual[row]
                    seen[row, places + int((~valid[row]).sum())] = True
        hidden = ~(allowed & seen[:, None, :])
        masks.append(torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min).unsqueeze(1))
    return masks


def text_model(model: PreTrainedModel) -> PreTrainedModel:
    return model.model.language_model if hasattr(model.model, "language_model") else model.model.text_model


def text_layers(model: PreTrainedModel) -> nn.ModuleList:
    return text_model(model).layers


def run_masked(model: PreTrainedModel, inputs: dict, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Final hidden states and logits of the whole sequence, unpruned, under a mask of our own in every layer."""

    def replace(mask: Tensor) -> Any:
        return lambda _, args, kwargs: (args, kwargs | {"attention_mask": mask})

    handles = [
        layer.register_forward_pre_hook(replace(mask), with_kwargs=True)
        for layer, mask in zip(text_layers(model), masks, strict=True)
    ]
    final: list[Tensor] = []
    handles.append(model.lm_head.register_forward_pre_hook(lambda _, args: final.append(args[0])))
    with hooked(handles):
        logits = model(**inputs, use_cache=False).logits
    return final[0], logits


# the vision tower


def full_attention(queries: np.ndarray, keys: np.ndarray, scaling: float) -> np.ndarray:
    """Head-mean softmax attention ``[N, N]`` of ``[heads, N, d]`` and ``[key heads, N, d]``."""
    share = len(queries) // len(keys)
    total = np.zeros((queries.shape[1], keys.shape[1]))
    for head, rows in enumerate(queries):
        logits = rows.astype(np.float64) @ keys[head // share].astype(np.float64).T * scaling
        weights = np.exp(logits - logits.max(1, keepdims=True))
        total += weights / weights.sum(1, keepdims=True)
    return total / len(queries)


def relevance(attention: np.ndarray, threshold: float) -> np.ndarray:
    """Mean of the rows of the tokens that receive more than ``threshold`` times the mean."""
    received = attention.mean(0)
    rows = [i for i in range(len(received)) if received[i] > threshold * received.mean()]
    return attention[rows or [int(received.argmax())]].mean(0)


def entropy(frames: Sequence[np.ndarray], patch: int) -> np.ndarray:
    """Bits of the grey-level histogram of each patch ``[h, w]`` of ``uint8 [H, W, 3]`` frames, seen together."""
    image = np.stack(frames)
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    bits = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            part = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            grey = np.rint(part.astype(np.float64).mean(-1)).astype(int).ravel()
            for level in set(grey.tolist()):
                share = (grey == level).mean()
                bits[row, column] -= share * np.log2(share)
    return bits


def vision_attention(model: PreTrainedModel, inputs: dict) -> list[np.ndarray]:
    """Head-mean attention ``[N, N]`` of each view, as the stock eager tower computes it in the layer of −1."""
    module = tiny_models.family(model).vision_attention(model)
    source, seen = sys.modules[type(module).__module__], []
    eager, settings = source.eager_attention_forward, module.config

    def noting(own: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output, weights = eager(own, *args, **kwargs)
        if own is module:
            seen.extend(weights.double().mean(1).numpy())
        return output, weights

    backend = settings._attn_implementation
    source.eager_attention_forward, settings._attn_implementation = noting, "eager"
    try:
        encode(model, inputs)
    finally:
        source.eager_attention_forward, settings._attn_implementation = eager, backend
    return seen


def encode(model: PreTrainedModel, inputs: dict) -> list[Tensor]:
    """The stock model's features of each image, then each video."""
    features: list[Tensor] = []
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels in inputs:
            function = getattr(model.model, f"get_{kind}_features")
            _, *others = inspect.signature(function).parameters
            others += ["image_sizes"] if kind == "image" else []  # older versions hide it among kwargs
            output = function(inputs[pixels], **{key: inputs[key] for key in others if key in inputs})
            features += [own.flatten(0, -2) for own in output.pooler_output]
    lengths = [len(tokens) for tokens in tokens_of(model, inputs)]
    if len(features) != len(lengths):  # some give the features of all images of a row together
        return list(torch.cat(features).split(lengths))
    return [  # some older ones add a video's newline token later
        own if len(own) == length else torch.cat([own, model.model.image_newline[None]])
        for own, length in zip(features, lengths, strict=True)
    ]


def view_maps(model: PreTrainedModel, inputs: dict, threshold: float, weight: float) -> list[np.ndarray]:
    """VFlowOpt's map over the patches of each view ``[rows, columns]``."""
    own, patch = tiny_models.family(model), int(np.ravel(model.config.vision_config.patch_size)[0])
    pictures = own.pictures(model, inputs)
    orders = own.tower_order(model, inputs) if own.tower_order else [None] * len(pictures)
    seen, maps = vision_attention(model, inputs), []
    if len(seen) < len(pictures):  # one sequence of all views, each of which attends to itself
        ends = np.cumsum([frames[0][0].numel() // patch**2 for frames in pictures])
        seen = [seen[0][start:end, start:end] for start, end in pairwise([0, *ends])]
    for attention, frames, order in zip(seen, pictures, orders, strict=True):
        rows, columns = (side // patch for side in frames[0].shape[1:])
        scores = relevance(attention, threshold)[-rows * columns :]
        if order is not None:
            scores = scores[np.argsort(order)]
        images = [frame.permute(1, 2, 0).double().numpy() * STD + MEAN for frame in frames]
        bits = entropy([np.clip(np.rint(image * 255), 0, 255).astype(np.uint8) for image in images], patch)
        maps.append((scores + weight * np.exp(bits.ravel()) / np.exp(bits).sum()).reshape(rows, columns))
    return maps


def token_values(tokens: Sequence[Token], views: Sequence[np.ndarray]) -> np.ndarray:
    """A map over views as one over visual tokens; NaN where a token belongs to no patch."""

    def value(token: Token) -> float:
        if token is None:
            return np.nan
        return sum(weight * views[view][row, column] for (view, row, column), weight in token.items())

    return np.array([value(token) for token in tokens])


def vision_maps(model: PreTrainedModel, inputs: dict, threshold: float, weight: float) -> list[np.ndarray]:
    """VFlowOpt's importance of every visual token of every image, then video; NaN at newline tokens."""
    views, maps = view_maps(model, inputs, threshold, weight), []
    for tokens in tokens_of(model, inputs):
        own = 1 + max(view for token in tokens if token for view, _, _ in token)
        maps.append(token_values(tokens, views[:own]))
        views = views[own:]
    return maps


def tokens_of(model: PreTrainedModel, inputs: dict) -> list[list[Token]]:
    """The patches of every visual token of every image, then video."""
    return tiny_models.family(model).tokens(model, inputs)


def grid_places(tokens: Sequence[Token]) -> list[tuple[int, int, int]]:
    """(grid, row, column) of an image's patch tokens: a view is a grid, but tiles whose rows end together are one."""
    rows: dict = {}
    newlines = sum(token is None for token in tokens[1:])
    views = {view for token in tokens if token for view, _, _ in token}
    tiled = newlines > 1 and len(views) > 1
    grid = row = 0
    places: list[tuple[int, int, int]] = []
    column = 0
    for token in tokens:
        if token is None:
            row, column = (row + 1, 0) if places else (row, column)  # a leading class token ends no row
            continue
        view, y, _ = min(token)
        if not tiled or view == 0:
            height = rows.setdefault(view, {}).setdefault(y, len(rows[view]))
            width = sum(place[0] == view and place[1] == height for place in places)
            places.append((view, height, width))
        else:
            if grid == 0:
                grid, row, column = 1, 0, 0
            places.append((1, row, column))
            column += 1
    return places


# recycling


def recycle(
    features: np.ndarray, importance: np.ndarray, places: Sequence[tuple[int, int, int]], cell: float, top: int
) -> list[tuple[int, np.ndarray, float, int]]:
    """Keep the ``top`` most important tokens, merge the others cell by cell: (place, feature, importance, size)."""
    order = sorted(range(len(importance)), key=lambda token: (-importance[token], token))
    cells: dict = {}
    for token in order[top:]:
        grid, row, column = places[token]
        cells.setdefault((grid, int(row / cell), int(column / cell)), []).append(token)
    result = [(token, features[token], importance[token], 1) for token in order[:top]]
    for members in cells.values():  # most important first
        weights = np.maximum(importance[members], 0).astype(np.float64)
        if weights.sum() == 0:
            weights = np.ones(len(members))
        merged = (features[members] * weights[:, None]).sum(0) / weights.sum()
        result.append((members[0], merged, importance[members[0]], len(members)))
    return sorted(result, key=lambda token: token[0])


def recycle_exactly(features: Any, importance: Any, places: Any, cell: float, count: int) -> list | None:
    """The same with the number of kept tokens that leaves ``count``; None if there is none."""
    for top in range(len(importance) + 1):
        result = recycle(features, importance, places, cell, top)
        if len(result) == count:
            return result
    return None


# the language model


def decoder(
    text: PreTrainedModel, states: Tensor, positions: Sequence[int], bias: Tensor, alive: Sequence[Any]
) -> Tensor:
    """Final hidden states of one sequence, head by head, without cache or mask tensor.

    Args:
        text: whose weights to use.
        states: input embeddings ``[L, C]``.
        positions: of each token.
        bias: added to the logits of each token's key ``[L]``.
        alive: for each layer, which of the L tokens it sees, sorted.
    """
    settings = text.config
    heads, key_heads = settings.num_attention_heads, settings.num_key_value_heads
    width = settings.hidden_size // heads
    frequencies = settings.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    present = torch.arange(len(states))

    def rotate(x: Tensor, tokens: Tensor) -> Tensor:
        first, second = x[:, : width // 2], x[:, width // 2 :]
        c, s = cos[tokens], sin[tokens]
        return torch.cat([first * c - second * s, second * c + first * s], 1)

    for layer, left in zip(text.layers, alive, strict=True):
        tokens = torch.as_tensor(left)
        states = states[torch.isin(present, tokens)]
        present = tokens
        normed = layer.input_layernorm(states)
        q, k, v = (getattr(layer.self_attn, f"{which}_proj")(normed) for which in "qkv")
        outputs = []
        for head in range(heads):
            own, shared = slice(head * width, (head + 1) * width), head // (heads // key_heads)
            shared = slice(shared * width, (shared + 1) * width)
            logits = rotate(q[:, own], tokens) @ rotate(k[:, shared], tokens).T / width**0.5 + bias[tokens]
            logits = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf)
            outputs.append(logits.softmax(1) @ v[:, shared])
        states = states + layer.self_attn.o_proj(torch.cat(outputs, 1))
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    return text.norm(states)


# calls of every kind


@contextmanager
def noted_positions(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Position ids that the text model is given, forward by forward: ``[B, n]`` or ``[axes, B, n]``."""
    noted: list[Tensor] = []

    def enter(_: nn.Module, args: Any, kwargs: dict) -> None:
        if (ids := kwargs.get("position_ids")) is not None:
            noted.append(ids if ids.ndim == 2 or len(ids) < 4 else ids[1:])  # an axis that counts text comes first

    with hooked([text_model(model).register_forward_pre_hook(enter, with_kwargs=True)]):
        yield noted


def run_hidden(
    model: PreTrainedModel,
    inputs: dict,
    kept: Sequence[Sequence[Tensor]],
    schedule: Sequence[tuple[int, float]] = LAYER_0_AND_INNER,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Logits of the whole sequence and what reaches each layer, unpruned, each pruned token hidden from its layer on.

    Args:
        model: stock.
        inputs: of the unpruned batch, padded on any side.
        kept: for each row and step the kept visual tokens, in the row's own coordinates.
        schedule: pruning steps.
    """
    valid = inputs["attention_mask"].bool()
    seen = valid.repeat(len(text_layers(model)), 1, 1)
    for row, steps in enumerate(kept):
        places = valid[row].nonzero()[:, 0]
        for (start, _), left in zip(schedule, steps, strict=True):
            seen[start:, row] &= ~tiny_models.is_visual(inputs)[row]
            seen[start:, row, places[left]] = True

    def hide(layer: int) -> Any:
        def enter(_: nn.Module, args: Any, kwargs: dict) -> Any:
            stock, length = kwargs["attention_mask"], valid.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            allowed = causal if stock is None else stock if stock.dtype == torch.bool else stock == 0
            hidden = ~(allowed & seen[layer, :, None, None])
            mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
            return args, kwargs | {"attention_mask": mask}

        return enter

    layers = enumerate(text_layers(model))
    with hooked([own.register_forward_pre_hook(hide(layer), with_kwargs=True) for layer, own in layers]):
        output = model(**inputs, use_cache=False, output_hidden_states=True)
    return output.logits, output.hidden_states
