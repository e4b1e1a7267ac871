"""Stage B: projector, decoder and tower learn together to answer from pictures, always on all visual tokens."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.train_tiny.batches import questions_at, scenes_at
from pipelines.train_tiny.labels import patch_words, pictures, symbolic_picture
from pipelines.train_tiny.loop import Losses, run_stage
from pipelines.train_tiny.packing import answer_loss, pack
from pipelines.train_tiny.tower import NamingTower


def train_projector(
    model: LlavaForConditionalGeneration, tower: NamingTower, options: DictConfig, folder: Path
) -> None:
    """Warm-up of the projector alone: the features of an item become the sum of its words' embeddings."""
    projector = model.model.multi_modal_projector
    embedding = model.get_input_embeddings()
    patch = model.config.vision_config.patch_size

    def losses_at(step: int) -> Losses:
        scenes = scenes_at(step, options)
        words = torch.from_numpy(np.stack([patch_words(scene, patch) for scene in scenes]))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = tower(pictures(scenes))[0]
                target = symbolic_picture(words, embedding)
            error = projector(features).float() - target
        return {"loss": error.square().mean() / target.square().mean()}

    run_stage("projector", projector, losses_at, options, folder)


def train_joint(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    tower: NamingTower,
    options: DictConfig,
    folder: Path,
) -> None:
    """Answer loss through the whole model.

    The losses of stage A stay as side tasks: without the one on patches the tower spreads what it knows of an item over
    many tokens, and then it hardly matters which are kept; without the one on the picture nothing trains the CLS.
    """
    patches = model.config.image_seq_length
    places = torch.arange(patches).expand(options.batch, -1)

    def losses_at(step: int) -> Losses:
        scenes, questions = questions_at(step, options)
        with torch.autocast("cpu", torch.bfloat16):
            features, patch_logits, scene_logits = tower(pictures(scenes))
            picture = model.model.multi_modal_projector(features)
            answer, right = answer_loss(model, pack(processor, questions), picture, places, patches)
        naming = tower.losses(scenes, patch_logits, scene_logits, sharp=True)
        named = naming["loss"] - naming["caption"]
        loss = answer + options.naming_weight * named + options.caption_weight * naming["caption"]
        return {"loss": loss, "answer": answer, "right": right, "glyph": naming["glyph"]}

    run_stage("joint", nn.ModuleList([model, tower]), losses_at, options, folder)
