"""Stage B: projector, decoder and tower learn together to answer from pictures, in the end on all visual tokens."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.train_tiny.batches import questions_at, scenes_at
from pipelines.train_tiny.decoder import items_first
from pipelines.train_tiny.labels import SLOTS, patch_labels, pictures, symbolic_picture
from pipelines.train_tiny.levelling import tell_tale
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
        words, roles = patch_labels(scenes, patch)
        with torch.no_grad():
            features = tower(pictures(scenes))[0]
            target = symbolic_picture(words, embedding)
        picture = projector(features)
        error = (picture - target).square().mean() / target.square().mean()
        telling = tell_tale(picture, roles)
        return {"loss": error + options.telling_weight * telling, "telling": telling}

    run_stage("projector", projector, losses_at, options, folder)


def train_joint(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    tower: NamingTower,
    options: DictConfig,
    folder: Path,
) -> None:
    """Answer loss through the whole model.

    The losses of stage A stay as side tasks: without naming, the tower spreads what it knows of an item over many
    tokens, and then it hardly matters which are kept; without the caption nothing trains the CLS.
    """
    patch = model.config.vision_config.patch_size
    patches = model.config.image_seq_length

    def losses_at(step: int) -> Losses:
        scenes, questions = questions_at(step, options)
        roles = patch_labels(scenes, patch)[1]
        features, pooled, attention = tower(pictures(scenes))
        picture = model.model.multi_modal_projector(features)
        places = items_first(roles, options.tokens if step < options.whole_from else patches, seed=step)
        kept = picture.gather(1, places.unsqueeze(-1).expand(-1, -1, picture.shape[-1]))
        answer, right = answer_loss(model, pack(processor, questions), kept, places, patches)
        side = tower.losses(scenes, features, pooled, attention)
        telling = side["telling"] + tell_tale(picture, roles)
        loss = answer + options.naming_weight * side["naming"] + options.caption_weight * side["caption"]
        loss = loss + options.telling_weight * telling + options.gaze_weight * side["gaze"]
        shown = {name: side[name] for name in ("gaze", *SLOTS[:3])}
        return {"loss": loss, "answer": answer, "right": right, "telling": telling, **shown}

    run_stage("joint", nn.ModuleList([model, tower]), losses_at, options, folder)
