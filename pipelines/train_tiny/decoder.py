"""Stage L: the decoder alone learns to answer from symbolic pictures, where no tower has to be learnt meanwhile."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from pipelines.train_tiny.batches import questions_at
from pipelines.train_tiny.labels import FILL, patch_labels, symbolic_picture
from pipelines.train_tiny.loop import Losses, mixed_precision, run_stage
from pipelines.train_tiny.packing import answer_loss, pack


def train_decoder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, options: DictConfig, folder: Path
) -> None:
    """Train the decoder of ``model`` in place.

    The lessons get harder: few objects, few visual tokens and look-up questions first, whole pictures in the end.
    Looking an object up by one of its words is what a random decoder finds hardest, and other questions distract it.
    """
    patch = model.config.vision_config.patch_size
    patches = model.config.image_seq_length

    def losses_at(step: int) -> Losses:
        lesson = next(lesson for lesson in options.lessons if step < lesson.until)
        scenes, questions = questions_at(step, options, lesson.kinds, lesson.times, lesson.counts)
        words, roles = patch_labels(scenes, patch)
        places = items_first(roles, lesson.tokens, seed=step)
        words = words.gather(1, places.unsqueeze(-1).expand(-1, -1, words.shape[-1]))
        with mixed_precision(model.device):
            picture = symbolic_picture(words.to(model.device), model.get_input_embeddings())
            loss, right = answer_loss(model, pack(processor, questions, lesson.early), picture, places, patches)
        return {"loss": loss, "right": right}

    run_stage("decoder", nn.ModuleList([model.model.language_model]), losses_at, options, folder)


def items_first(roles: torch.Tensor, kept: int, seed: int) -> torch.Tensor:
    """The patches of items and random others, ``kept`` in all, ascending: [batch, patches] -> [batch, kept]."""
    rank = torch.rand(roles.shape, generator=torch.Generator().manual_seed(seed)) + (roles >= FILL)
    return rank.topk(kept, dim=1).indices.sort(dim=1).values
