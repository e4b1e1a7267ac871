"""Load a vision-language model and its processor: the shipped one, a local path, or a hub id."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from multimodal.dinov2 import tower_weights
from multimodal.errors import FlowpruneError
from multimodal.families import check_supported

SHIPPED = {name: Path(__file__).parent / name for name in ("tiny", "dino")}
WEIGHTS = "model.safetensors"


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "sdpa",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model for inference and its processor.

    Args:
        model: ``tiny`` or ``dino`` (shipped), a local folder, or a hub id of a supported family.
        revision: of the hub repository.
        dtype: ``auto`` (the checkpoint's; float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (CUDA if there is one), or a torch device.
        attention: ``eager``, ``sdpa`` or ``flash_attention_2``.
        trust_remote_code: run code from the repository; off unless you ask.

    Raises:
        FlowpruneError: nothing there, the family is not supported, or the tower of ``dino`` is not installed.
    """
    where = str(SHIPPED.get(str(model), model))
    place = chosen_device(device)
    if not Path(where).exists() and (where.startswith(("/", ".", "~")) or where.count("/") > 1):
        raise FlowpruneError(f"The model {where} does not exist: give 'tiny', 'dino', a local folder or a hub id.")
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _reading(where, lambda: AutoConfig.from_pretrained(where, **common))
    check_supported(config.model_type)
    if dtype == "auto" and place.type == "cpu":
        dtype = "float32"
    try:
        loaded = _loaded(where, config, dtype=dtype, attn_implementation=attention, **common)
    except ImportError as error:
        raise FlowpruneError(f"attention {attention!r} is not installed ({error}): use attention='sdpa'.") from error
    processor = _reading(where, lambda: AutoProcessor.from_pretrained(where, **common))
    processor.tokenizer.padding_side = "left"
    loaded.to(place)  # type: ignore[arg-type]
    return loaded.eval(), processor


def _loaded(where: str, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of a folder or hub id; one whose folder has no vision tower, as that of ``dino``, is put together."""
    if not _lacks_tower(where, config):
        return AutoModelForImageTextToText.from_pretrained(where, **options)
    tower = {f"model.vision_tower.{name}": weight for name, weight in tower_weights().items()}
    weights = load_file(Path(where) / WEIGHTS) | tower
    model = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=weights, **options)
    model.name_or_path = model.config._name_or_path = where
    model.generation_config = GenerationConfig.from_pretrained(where)
    return model


def _lacks_tower(where: str, config: PretrainedConfig) -> bool:
    """Whether a folder holds a LLaVA on DINOv2, but not its tower."""
    path = Path(where) / WEIGHTS
    if config.model_type != "llava" or config.vision_config.model_type != "dinov2" or not path.exists():
        return False
    with safe_open(path, "pt") as weights:
        return not any("vision_tower" in name for name in weights.keys())  # noqa: SIM118 (it is no dictionary)


def chosen_device(device: str) -> torch.device:
    """A torch device; ``auto`` is CUDA if there is one."""
    return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))


def _reading(where: str, read: Any) -> Any:
    try:
        return read()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FlowpruneError(
            f"No model could be read from {where!r} ({reason}): give 'tiny', 'dino', a local folder or a hub id."
        ) from error
