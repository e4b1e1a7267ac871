"""The frozen tower looks at every training picture once; what it saw is kept on disk, and all later stages read that.

Every second scene stands on a photograph, the others on drawn grounds.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from pipelines.data.photos import photo_background
from pipelines.data.scenes import describe, render, scene_rng

log = logging.getLogger(__name__)

SAMPLE = 100  # scenes whose mean and deviation stand for all


class Encoded:
    """Features of the training scenes, float16 on disk, each channel standardised where they are read.

    The shallower states are much smaller than the deeper ones, and a projector would take long to notice them.

    Args:
        raw: what the tower put out, [scenes, patches, width].
    """

    def __init__(self, raw: np.ndarray):
        self.raw = raw
        some = torch.from_numpy(raw[:SAMPLE]).float().flatten(0, 1)
        self.mean, self.std = some.mean(dim=0), some.std(dim=0)

    def __len__(self) -> int:
        return len(self.raw)

    def at(self, indices: Sequence[int], device: torch.device) -> torch.Tensor:
        """Those of some scenes, float32 [scenes, patches, width]."""
        found = torch.from_numpy(self.raw[list(indices)]).to(device, torch.float32)
        return (found - self.mean.to(device)) / self.std.to(device)

    @torch.no_grad()
    def fold(self, projector: LlavaMultiModalProjector) -> None:
        """Let a projector that was trained on standardised features take the tower's own, in place."""
        first = projector.linear_1
        first.weight.div_(self.std.to(first.weight))
        first.bias.sub_(first.weight @ self.mean.to(first.weight))


def on_photo(index: int) -> bool:
    """Whether a training scene stands on a photograph."""
    return index % 2 == 1


def training_picture(index: int) -> Image.Image:
    """The picture of a training scene."""
    scene = describe(scene_rng("train", index))
    return render(scene, photo_background("train", index) if on_photo(index) else None)


def encode(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, options: DictConfig, folder: Path
) -> Encoded:
    """What the tower makes of the first ``scenes`` training scenes, going on where an earlier run stopped.

    ``encoded.txt`` holds how many there are in the file.
    """
    width = model.config.vision_config.hidden_size * len(model.config.vision_feature_layer)
    shape = (options.scenes, model.config.image_seq_length, width)
    folder.mkdir(parents=True, exist_ok=True)
    path, progress = folder / "features.f16", folder / "encoded.txt"
    path.touch()
    features = np.memmap(path, np.float16, "r+", shape=shape)  # makes the file longer where it is too short
    first = int(progress.read_text()) if progress.exists() else 0
    started = time.perf_counter()
    for start in range(first, options.scenes, options.batch):
        indices = range(start, min(start + options.batch, options.scenes))
        images = [training_picture(index) for index in indices]
        pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"].to(model.device)
        features[start : indices.stop] = seen(model, pixels).cpu().numpy()
        progress.write_text(str(indices.stop))
        if indices.stop % options.log_every < options.batch:
            log.info("encoded %d/%d (%.0f s)", indices.stop, options.scenes, time.perf_counter() - started)
    return Encoded(features)


@torch.no_grad()
def seen(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """The tower's states that the projector reads, side by side, without class token: [images, patches, width]."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return torch.cat([states[layer][:, 1:] for layer in model.config.vision_feature_layer], dim=-1)
