"""The weights of a checkpoint: all of the model's, read from safetensors, or a sentence that says what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from multimodal.dinov2 import tower_weights
from multimodal.errors import FlowpruneError

WEIGHTS = "model.safetensors"
LFS_POINTER = b"version https://git-lfs"


def read_weights(where: str, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The model of a folder or hub id; one whose folder has no vision tower, as that of ``dino``, is put together.

    Args:
        where: a folder or hub id.
        config: its config.
        options: of transformers' ``from_pretrained``.

    Raises:
        FlowpruneError: weights are missing, of other shapes, broken or pickled.
    """
    _check_files(Path(where))
    options |= {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    with _said_once():
        read: Any = _with_a_tower if _lacks_tower(where, config) else AutoModelForImageTextToText.from_pretrained
        model, found = read(where, config=config, **options)
    _check_keys(where, found)
    return model


def add_adapter(model: PreTrainedModel, where: str) -> None:
    """Add a PEFT adapter to a model, all of it.

    Args:
        model: changed in place.
        where: a folder or hub id.

    Raises:
        FlowpruneError: its weights are broken or pickled, or it was trained for another model.
    """
    _check_files(Path(where))
    with _said_once():
        found = model.load_adapter(where)
    absent, foreign = sorted(found.missing_keys), sorted(found.unexpected_keys)
    if absent or foreign:
        example = f"it lacks {absent[0]}" if absent else f"the model has no {foreign[0]}"
        raise FlowpruneError(
            f"The adapter {where} is not this model's ({example}), or transformers cannot read its kind: give the "
            "model that it was trained for, or merge it into the model with PEFT."
        )


def _with_a_tower(where: str, config: PretrainedConfig, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    tower = {f"model.vision_tower.{name}": weight for name, weight in tower_weights().items()}
    weights = load_file(Path(where) / WEIGHTS) | tower
    read: Any = LlavaForConditionalGeneration.from_pretrained
    model, found = read(None, config=config, state_dict=weights, **options)
    model.name_or_path = model.config._name_or_path = where
    model.generation_config = GenerationConfig.from_pretrained(where)
    return model, found


def _check_files(folder: Path) -> None:
    """Refuse weights that are not there yet, cut off, or pickled alone."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise FlowpruneError(f"{file} is a Git LFS pointer, not weights: run git lfs pull in its folder.")
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise FlowpruneError(f"{file} is broken or cut off ({error}): download it again.") from error
    if not files and (pickled := sorted(folder.glob("*.bin"))):
        raise FlowpruneError(
            f"{pickled[0]} is pickled, which may run code when it is read: convert the model to safetensors."
        )


def _check_keys(where: str, found: dict[str, Any]) -> None:
    missing = sorted(found["missing_keys"])
    if missing:
        instead = sorted(found["unexpected_keys"])
        beside = f", and has {len(instead)} others, such as {instead[0]}" if instead else ""
        raise FlowpruneError(
            f"The checkpoint {where} lacks {len(missing)} of the model's weights, such as {missing[0]}{beside}: they "
            "would be random; give the checkpoint that its config.json belongs to."
        )
    if found["mismatched_keys"]:
        name, held, wanted = sorted(found["mismatched_keys"])[0]
        raise FlowpruneError(
            f"The checkpoint {where} has {name} of shape {list(held)}, and its config.json asks for {list(wanted)}: "
            "give the config.json that belongs to it."
        )


def _lacks_tower(where: str, config: PretrainedConfig) -> bool:
    """Whether a folder holds a LLaVA on DINOv2, but not its tower."""
    path = Path(where) / WEIGHTS
    if config.model_type != "llava" or config.vision_config.model_type != "dinov2" or not path.exists():
        return False
    with safe_open(path, "pt") as weights:
        return not any("vision_tower" in name for name in weights.keys())  # noqa: SIM118 (it is no dictionary)


@contextmanager
def _said_once() -> Iterator[None]:
    """Without transformers' own report of keys, of which one sentence is left."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
