"""Stage A: the vision tower alone learns to name what is in each patch, and its CLS what is in the picture."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from pipelines.data.scenes import Scene
from pipelines.train_tiny.batches import scenes_at
from pipelines.train_tiny.labels import IGNORED, NOTHING, SLOTS, edges_as_background, patch_words, pictures, scene_words
from pipelines.train_tiny.loop import Losses, run_stage
from pipelines.train_tiny.model import VOCABULARY


class NamingTower(nn.Module):
    """The tower with two linear heads that only training needs."""

    def __init__(self, vision_tower: nn.Module):
        super().__init__()
        self.vision_tower = vision_tower
        width = vision_tower.config.hidden_size
        self.patch_head = nn.Linear(width, len(SLOTS) * len(VOCABULARY))
        self.scene_head = nn.Linear(width, len(VOCABULARY))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features [images, patches, width], patch logits [images, patches, 5, words], scene logits [images, words]."""
        output = self.vision_tower(pixels, output_hidden_states=True)
        features = output.hidden_states[-2][:, 1:]
        logits = self.patch_head(features).unflatten(-1, (len(SLOTS), len(VOCABULARY)))
        return features, logits.float(), self.scene_head(output.pooler_output).float()

    def losses(
        self, scenes: list[Scene], patch_logits: torch.Tensor, scene_logits: torch.Tensor, sharp: bool
    ) -> Losses:
        """Items and background weigh the same; also the share of item patches named right, slot by slot.

        If ``sharp``, the edges of items count as background; otherwise they do not count.
        """
        patch = self.vision_tower.config.patch_size
        words = torch.from_numpy(np.stack([patch_words(scene, patch) for scene in scenes]))
        words = edges_as_background(words) if sharp else words
        each = F.cross_entropy(patch_logits.flatten(0, 2), words.flatten(), ignore_index=IGNORED, reduction="none")
        each = each.view(words.shape).mean(dim=-1)
        item, ground = (words[..., 3] > NOTHING), (words[..., 3] == NOTHING)
        hot = torch.from_numpy(np.stack([scene_words(scene) for scene in scenes]))
        caption = F.binary_cross_entropy_with_logits(scene_logits, hot) * 4
        right = (patch_logits.argmax(dim=-1) == words)[item].float().mean(dim=0)
        return {
            "loss": each[item].mean() + each[ground].mean() + caption,
            "caption": caption,
            **dict(zip(SLOTS[:3], right, strict=False)),
        }


def train_tower(name: str, tower: NamingTower, options: DictConfig, folder: Path) -> None:
    """Train the tower in place.

    First it names what it likes at the edges of items; then, sharpened, only their hearts, so that few tokens hold
    what is known of an item and it matters which ones are kept.
    """

    def losses_at(step: int) -> Losses:
        scenes = scenes_at(step, options)
        with torch.autocast("cpu", torch.bfloat16):
            _, patch_logits, scene_logits = tower(pictures(scenes))
        return tower.losses(scenes, patch_logits, scene_logits, options.sharp)

    run_stage(name, tower, losses_at, options, folder)
