"""Importance maps over the visual tokens: trivial statistics, plain attention and an oracle that knows the regions."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.sample import Sample
from pipelines.data.scenes import SIZE

GREY_LEVELS = 32


@dataclass(frozen=True)
class Seen:
    """What the tower makes of pictures, each [pictures, patches, ...]: features, visual tokens and attention."""

    features: torch.Tensor
    tokens: torch.Tensor
    received: torch.Tensor
    cls: torch.Tensor


@torch.no_grad()
def look(model: LlavaForConditionalGeneration, processor: LlavaProcessor, samples: list[Sample], batch: int) -> Seen:
    """Run the tower and the projector; attention is that of the tower layer which feeds the projector."""
    parts = []
    for first in range(0, len(samples), batch):
        images = [sample.image for sample in samples[first : first + batch]]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
        output = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
        states = model.config.vision_feature_layer
        states = [states] if isinstance(states, int) else states
        features = torch.cat([output.hidden_states[state][:, 1:] for state in states], dim=-1)
        attention = output.attentions[-2].mean(dim=1)
        tokens = model.model.multi_modal_projector(features)
        parts.append((features, tokens, attention.mean(dim=1)[:, 1:], attention[:, 0, 1:]))
    return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))


def statistics(samples: list[Sample], seen: Seen) -> dict[str, torch.Tensor]:
    """Trivial statistics of visual tokens, tower features and pixels, each both ways: [samples, patches] by name."""
    side = int(seen.tokens.shape[1] ** 0.5)
    pixels = torch.stack([_grey_patches(sample, side) for sample in samples])
    middle = torch.full((len(samples), 2), SIZE / 2)
    both_ways = {
        ("longest tokens", "shortest tokens"): seen.tokens.norm(dim=-1),
        ("tokens far from their mean", "tokens near their mean"): _from_mean(seen.tokens),
        ("longest features", "shortest features"): seen.features.norm(dim=-1),
        ("features far from their mean", "features near their mean"): _from_mean(seen.features),
        ("high entropy", "low entropy"): _entropy(pixels),
        ("high variance", "low variance"): pixels.var(dim=-1),
    }
    maps = {"nearest to the centre": -_distances(middle, side)}
    for (high, low), values in both_ways.items():
        maps |= {high: values, low: -values}
    return maps


def oracle(samples: list[Sample], patches: int) -> torch.Tensor:
    """Higher the nearer a patch is to the middle of a box that the question asks about: [samples, patches]."""
    nearest = []
    for sample in samples:
        left, top, right, bottom = torch.tensor(sample.regions, dtype=torch.float32).T
        middles = torch.stack([(left + right) / 2, (top + bottom) / 2], dim=1)
        nearest.append(-_distances(middles, int(patches**0.5)).amin(dim=0))
    return torch.stack(nearest)


def _distances(points: torch.Tensor, side: int) -> torch.Tensor:
    """From each point (x, y) in pixels to the middle of every patch: [points, patches]."""
    along = (torch.arange(side) + 0.5) * SIZE / side
    patches = torch.stack([along.repeat(side), along.repeat_interleave(side)], dim=1)
    return torch.cdist(points, patches)


def _from_mean(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors - vectors.mean(dim=1, keepdim=True)).norm(dim=-1)


def _grey_patches(sample: Sample, side: int) -> torch.Tensor:
    """Grey levels, 0 to 255: [patches, pixels of a patch]."""
    grey = torch.from_numpy(np.array(sample.image.convert("L"), dtype=np.float32))
    return grey.unflatten(0, (side, -1)).unflatten(2, (side, -1)).transpose(1, 2).flatten(2).flatten(0, 1)


def _entropy(pixels: torch.Tensor) -> torch.Tensor:
    """Of the histogram of each patch's grey levels."""
    level = (pixels * GREY_LEVELS / 256).long()
    counts = torch.zeros(*pixels.shape[:-1], GREY_LEVELS).scatter_add_(-1, level, torch.ones_like(pixels))
    share = counts / pixels.shape[-1]
    return -(share * share.clamp(min=1e-12).log()).sum(dim=-1)
