"""Stage B on what the frozen tower saw: the projector alone, then projector and decoder together."""

from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.data.scenes import KINDS, ask, describe, scene_rng
from pipelines.train_dino.encode import Encoded, on_photo
from pipelines.train_tiny.decoder import items_first
from pipelines.train_tiny.labels import EDGE, GROUND, patch_labels, symbolic_picture
from pipelines.train_tiny.loop import Losses, mixed_precision, run_stage
from pipelines.train_tiny.packing import answer_loss, pack


def train_projector(model: LlavaForConditionalGeneration, encoded: Encoded, options: DictConfig, folder: Path) -> None:
    """Warm-up of the projector: the features of a patch become the sum of the embeddings of the words for it.

    No word says what a photograph shows, so patches of photographs, and edges of items, may become anything.
    """
    projector, embedding = model.model.multi_modal_projector, model.get_input_embeddings()

    def losses_at(step: int) -> Losses:
        indices = drawn(step, options.batch, len(encoded), options.seed)
        words, roles = patch_labels([describe(scene_rng("train", index)) for index in indices], patch)
        photos = torch.tensor([on_photo(index) for index in indices]).unsqueeze(1)
        named = ((roles != EDGE) & ~((roles == GROUND) & photos)).to(model.device)
        with torch.no_grad():
            target = symbolic_picture(words.to(model.device), embedding)[named]
        with mixed_precision(model.device):
            picture = projector(encoded.at(indices, model.device)[named]).float()
        return {"loss": (picture - target).square().mean() / target.square().mean()}

    patch = model.config.vision_config.patch_size
    run_stage("projector", projector, losses_at, options, folder)


def train_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    encoded: Encoded,
    options: DictConfig,
    folder: Path,
) -> None:
    """Answer loss through projector and decoder: on some visual tokens first, which is cheaper, on all in the end.

    A scene comes back every few hundred steps, with other questions.
    """
    patches, patch = model.config.image_seq_length, model.config.vision_config.patch_size

    def losses_at(step: int) -> Losses:
        indices = drawn(step, options.batch, len(encoded), options.seed)
        rng = np.random.default_rng([options.seed, step])
        scenes = [describe(scene_rng("train", index)) for index in indices]
        questions = [[ask(scene, kind, rng) for kind in KINDS for _ in range(options.times)] for scene in scenes]
        tokens = next(lesson.tokens for lesson in options.lessons if step < lesson.until)
        places = items_first(patch_labels(scenes, patch)[1], tokens, seed=step)
        features = encoded.at(indices, model.device)[torch.arange(options.batch).unsqueeze(1), places]
        with mixed_precision(model.device):
            picture = model.model.multi_modal_projector(features)
            loss, right = answer_loss(model, pack(processor, questions), picture, places, patches)
        return {"loss": loss, "right": right}

    trained = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model])
    run_stage("answers", trained, losses_at, options, folder)


def drawn(step: int, batch: int, scenes: int, seed: int) -> list[int]:
    """The scenes of a step: every scene once, in random order, before any comes back."""
    per_round = scenes // batch
    order = np.random.default_rng([seed, step // per_round]).permutation(scenes)
    first = step % per_round * batch
    return order[first : first + batch].tolist()
