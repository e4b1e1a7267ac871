"""Stage A: the vision tower alone learns to name what is seen in each patch, and its CLS what is in the picture."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import nn

from pipelines.data.scenes import Scene
from pipelines.train_tiny.batches import scenes_at
from pipelines.train_tiny.labels import EDGE, FILL, GROUND, NOTHING, SLOTS, patch_labels, pictures, scene_words
from pipelines.train_tiny.levelling import gaze, tell_tale
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
        """Features that the projector gets [images, patches, width], the pooled CLS, the attention of that layer."""
        output = self.vision_tower(pixels, output_hidden_states=True)
        return output.hidden_states[-2][:, 1:], output.pooler_output, self._attention(output.hidden_states[-3])

    def _attention(self, hidden: torch.Tensor) -> torch.Tensor:
        """Attention on patches in the layer that feeds the projector, received and of the CLS: [2, images, patches]."""
        encoder: Any = self.vision_tower.encoder
        layer = encoder.layers[-2]
        hidden, attention = layer.layer_norm1(hidden), layer.self_attn
        heads = (-1, attention.head_dim)
        query = attention.q_proj(hidden).unflatten(-1, heads).transpose(1, 2)
        key = attention.k_proj(hidden).unflatten(-1, heads).transpose(1, 2)
        weights = (query @ key.transpose(2, 3) * attention.scale).softmax(dim=-1).mean(dim=1)
        return torch.stack([weights.mean(dim=1), weights[:, 0]])[..., 1:]

    def losses(
        self, scenes: list[Scene], features: torch.Tensor, pooled: torch.Tensor, attention: torch.Tensor
    ) -> Losses:
        """Losses of naming patches, the caption and what lengths and attention tell; the words named right by slot.

        Items and ground weigh the same, and so do the slots of items. The edges of items may be called anything.
        """
        words, roles = patch_labels(scenes, self.vision_tower.config.patch_size)
        logits = self.patch_head(features).unflatten(-1, (len(SLOTS), len(VOCABULARY)))
        each = F.cross_entropy(logits.flatten(0, 2), words.flatten(), reduction="none").view(words.shape)
        item = roles >= FILL
        spoken = item.unsqueeze(-1) & (words != NOTHING)
        silent = (words == NOTHING) & (roles != EDGE).unsqueeze(-1)
        named = torch.stack([each[..., slot][spoken[..., slot]].mean() for slot in range(len(SLOTS))]).mean()
        right = logits.argmax(dim=-1) == words
        return {
            "naming": named + each[roles == GROUND].mean() + each[silent].mean(),
            "caption": F.binary_cross_entropy_with_logits(self.scene_head(pooled), scene_words(scenes)) * 4,
            "telling": tell_tale(features, roles),
            "gaze": gaze(attention, roles),
            **{name: right[..., slot][spoken[..., slot]].float().mean() for slot, name in enumerate(SLOTS[:3])},
        }


def train_tower(tower: NamingTower, options: DictConfig, folder: Path) -> None:
    """Train the tower in place."""

    def losses_at(step: int) -> Losses:
        scenes = scenes_at(step, options)
        losses = tower.losses(scenes, *tower(pictures(scenes)))
        loss = losses["naming"] + losses["caption"] + options.telling_weight * losses["telling"]
        return {"loss": loss, **losses}

    run_stage("tower", tower, losses_at, options, folder)
