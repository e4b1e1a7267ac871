"""The models that are timed: published architectures with random weights, built from the files of ``conf/model``."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from multimodal.errors import FlowpruneError, reason_of
from multimodal.families import check_supported
from multimodal.loading import check_attention, chosen_device

CONF = Path(__file__).parents[2] / "conf" / "model"
SMALL_TEXT = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
SMALL_TEXT |= {"num_key_value_heads": 2, "head_dim": 64}
SMALL_TOWER: dict[str, Any] = {"num_hidden_layers": 4, "depth": 4, "hidden_size": 128, "intermediate_size": 256}
SMALL_TOWER |= {"num_attention_heads": 4, "num_heads": 4, "out_hidden_size": 256, "fullatt_block_indexes": [1, 3]}


@dataclass(frozen=True)
class Shape:
    """A model's architecture and the size of its images.

    Args:
        name: of the model.
        architecture: ``model_type`` and transformers' config.
        size: (height, width) of an image in pixels; None: what the tower takes.
    """

    name: str
    architecture: Mapping[str, Any]
    size: tuple[int, int] | None = None

    @classmethod
    def read(cls, text: str) -> "Shape":
        """A shape as it is typed: ``MODEL`` or ``MODEL@HEIGHTxWIDTH``, a name or path of a file of ``conf/model``.

        Raises:
            FlowpruneError: there is no such file, it has no architecture, or the size is none.
        """
        name, at, size = text.partition("@")
        path = Path(name) if name.endswith((".yaml", ".yml")) else CONF / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in CONF.glob("*.yaml")))
            raise FlowpruneError(f"There is no model file {path}: give a YAML file, or one of {known}.")
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
            architecture, own = read["architecture"], read.get("name") or path.stem
            architecture["model_type"]
        except (yaml.YAMLError, TypeError, KeyError) as error:
            raise FlowpruneError(f"{path} names no architecture.model_type: give a file that does.") from error
        return cls(own, architecture, read_size(size) if at else None)

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}@{in_words(self.size)}"


def read_size(text: str) -> tuple[int, int]:
    """A size as it is typed: ``HEIGHTxWIDTH``, or the side of a square.

    Raises:
        FlowpruneError: it is none.
    """
    sides = text.split("x") if "x" in text else [text, text]
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise FlowpruneError(f"The image size {text!r} is none: give HEIGHTxWIDTH in pixels, such as 672x672.")
    return int(sides[0]), int(sides[1])


def in_words(size: tuple[int, int] | None) -> str:
    """A size as it is typed."""
    return "the tower's own size" if size is None else f"{size[0]}x{size[1]}"


def random_model(
    architecture: Mapping[str, Any], device: str, dtype: torch.dtype, attention: str, small: bool = False
) -> PreTrainedModel:
    """A model with random weights: speed needs no checkpoint.

    Args:
        architecture: ``model_type`` and transformers' config.
        device: ``auto``, or a torch device.
        dtype: of the weights.
        attention: ``eager``, ``sdpa`` or ``flash_attention_2``.
        small: few and narrow layers instead of the published ones, to try a command.

    Raises:
        FlowpruneError: the family or a value of its config is not supported, or there is no such device or attention.
    """
    own = dict(architecture)
    check_supported(model_type := own.pop("model_type"))
    check_attention(attention)
    try:
        config = AutoConfig.for_model(model_type, **own)
    except Exception as error:  # of whatever checks its values
        raise FlowpruneError(f"The architecture is none of transformers' {model_type} ({reason_of(error)}).") from error
    if small:
        _shrink(config)
    with chosen_device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attention)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # nothing ends an answer
    return model.eval()


def _shrink(config: Any) -> None:
    text, tower = config.get_text_config(), config.vision_config
    for part, sizes in ((text, SMALL_TEXT), (tower, SMALL_TOWER)):
        for name, value in sizes.items():
            if hasattr(part, name):
                setattr(part, name, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    with contextlib.suppress(AttributeError, KeyError, TypeError):
        shares = text.rope_parameters["mrope_section"]  # of half a head
        text.rope_parameters["mrope_section"] = [share * 32 // sum(shares) for share in shares]
