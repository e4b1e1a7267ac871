"""Slow, obvious re-computations that tests compare the library with. Nothing here calls what it checks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import tiny_models
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal import PruningConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)

LAYER_0_AND_INNER = ((0, 0.7), (2, 0.6), (4, 0.5))
INNER_ONLY = ((1, 0.6), (3, 0.5))
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


def attention_masks(
    valid: Tensor,
    is_visual: Tensor,
    kept: Sequence[Sequence[Tensor]],
    schedule: Sequence[tuple[int, float]],
    layers: int,
) -> list[Tensor]:
    """Each layer's additive causal mask ``[B, 1, L, L]`` that hides padding and pruned tokens.

    Args:
        valid, is_visual: of the unpruned batch ``[B, L]``, padded on the left.
        kept: for each row and step the kept visual tokens, in the row's own coordinates.
        schedule: pruning steps.
        layers: of the language model.
    """
    length = valid.shape[1]
    masks = []
    for layer in range(layers):
        seen = valid.clone()
        for row, steps in enumerate(kept):
            for (start, _), places in zip(schedule, steps, strict=True):
                if layer >= start:
                    seen[row] &= ~is_visual[row]
                    seen[row, places + int((~valid[row]).sum())] = True
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & seen[:, None, :]
        masks.append(torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min).unsqueeze(1))
    return masks


def run_masked(model: PreTrainedModel, inputs: dict, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Final hidden states and logits of the whole sequence, unpruned, under a mask of our own in every layer."""

    def replace(mask: Tensor) -> Any:
        return lambda _, args, kwargs: (args, kwargs | {"attention_mask": mask})

    text = model.model.language_model
    handles = [
        layer.register_forward_pre_hook(replace(mask), with_kwargs=True)
        for layer, mask in zip(text.layers, masks, strict=True)
    ]
    with hooked(handles):
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
    return hidden, model.lm_head(hidden)


def extended(inputs: dict, new: Tensor) -> dict:
    """The inputs with new tokens ``[B, n]`` appended."""
    return inputs | {
        "input_ids": torch.cat([inputs["input_ids"], new], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(new)], 1),
    }


# the vision tower


def vision_layer(model: PreTrainedModel) -> nn.Module:
    """The attention module of the layer whose output feeds the projector."""
    feature = model.config.vision_feature_layer
    depth = model.config.vision_config.num_hidden_layers
    number = depth + feature if feature < 0 else feature - 1
    stack = next(m for m in model.model.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
    return next(m for m in stack[number].modules() if hasattr(m, "q_proj") or hasattr(m, "query"))


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


def entropy(image: np.ndarray, patch: int) -> np.ndarray:
    """Bits of the grey-level histogram of each patch ``[h, w]`` of a ``uint8 [H, W, 3]`` image."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    bits = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            part = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            grey = np.rint(part.astype(np.float64).mean(-1)).astype(int).ravel()
            for level in set(grey.tolist()):
                share = (grey == level).mean()
                bits[row, column] -= share * np.log2(share)
    return bits


def vision_maps(model: PreTrainedModel, inputs: dict, threshold: float, weight: float) -> list[np.ndarray]:
    """VFlowOpt's importance of every visual token of every image; NaN at newline tokens."""
    seen: dict[str, Tensor] = {}
    pixels: list[Tensor] = []
    module = vision_layer(model)
    names = {"q": "q_proj", "k": "k_proj"} if hasattr(module, "q_proj") else {"q": "query", "k": "key"}
    handles = [
        getattr(module, name).register_forward_hook(lambda _, __, out, which=which: seen.update({which: out}))
        for which, name in names.items()
    ]
    handles.append(
        model.model.vision_tower.register_forward_pre_hook(
            lambda _, args, kwargs: pixels.append((*args, *kwargs.values())[0]), with_kwargs=True
        )
    )
    arguments = {key: inputs[key] for key in ("pixel_values", "image_sizes") if key in inputs}
    with hooked(handles):
        model.model.get_image_features(**arguments)

    vision = model.config.vision_config
    heads, side = vision.num_attention_heads, vision.image_size // vision.patch_size
    tiles = []
    for tile, picture in enumerate(pixels[-1]):
        q, k = (seen[which][tile].unflatten(-1, (heads, -1)).transpose(0, 1).numpy() for which in "qk")
        scores = relevance(full_attention(q, k, q.shape[-1] ** -0.5), threshold)[-side * side :]
        image = picture.permute(1, 2, 0).double().numpy() * STD + MEAN
        bits = entropy(np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), vision.patch_size).ravel()
        tiles.append(scores + weight * np.exp(bits) / np.exp(bits).sum())
    maps, first = [], 0
    for tokens in tokens_of(model, inputs):
        places = [np.nan if cell is None else tiles[first + cell[0]][cell[1] * side + cell[2]] for cell in tokens]
        maps.append(np.array(places))
        first += 1 + max(cell[0] for cell in tokens if cell is not None)
    return maps


def tokens_of(model: PreTrainedModel, inputs: dict) -> list[list[tuple[int, int, int] | None]]:
    """(tile, row, column) of every visual token of every image; None for those that belong to no patch."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    base: list = [(0, row, column) for row in range(side) for column in range(side)]
    if model.config.model_type == "llava_onevision":
        pinpoints = model.config.image_grid_pinpoints
        return [
            base + anyres_tokens(tuple(size), pinpoints, side, vision.image_size)
            for size in inputs["image_sizes"].tolist()
        ]
    has_class = vision.model_type != "siglip_vision_model" and model.config.vision_feature_select_strategy == "full"
    return [[None, *base] if has_class else base for _ in inputs["pixel_values"]]


def anyres_tokens(size: tuple[int, int], pinpoints: Sequence[Sequence[int]], side: int, tile: int) -> list:
    """Tokens of the high-resolution view: the pinpoint that shows most of the image, without the padding around it.

    Args:
        size: (height, width) of the image.
        pinpoints: (height, width) of the resolutions there are.
        side: patches along a tile.
        tile: pixels along a tile.
    """
    height, width = size

    def fit(point: Sequence[int]) -> tuple[int, int]:
        scale = min(point[0] / height, point[1] / width)
        shown = min(int(height * scale) * int(width * scale), height * width)
        return shown, shown - point[0] * point[1]

    best = max(pinpoints, key=fit)
    rows, columns = best[0] // tile * side, best[1] // tile * side
    top = left = 0
    if width / height > columns / rows:
        top = (rows - int(round(height * columns / width, 7))) // 2
    else:
        left = (columns - int(round(width * rows / height, 7))) // 2
    tokens: list = []
    for row in range(top, rows - top):
        for column in range(left, columns - left):
            number = 1 + row // side * (columns // side) + column // side
            tokens.append((number, row % side, column % side))
        tokens.append(None)
    return tokens


def grid_places(tokens: Sequence[tuple[int, int, int] | None]) -> list[tuple[int, int, int]]:
    """(grid, row, column) of an image's patch tokens; the base view is grid 0, the tiles together are grid 1."""
    places, row, column = [], 0, 0
    for cell in tokens:
        if cell is None:
            row, column = (row + 1, 0) if places else (row, column)  # a leading class token ends no row
        elif cell[0] == 0:
            places.append(cell)
        else:
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
