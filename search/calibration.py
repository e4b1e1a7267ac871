"""Calibration samples: what the search must know of each (image, prompt) pair, cached so the vision tower runs once.

One safetensors file a sample, written atomically and memory-mapped, with the layouts in its metadata; workers share
the folder. Nothing is pickled.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from multimodal import FlowpruneError
from multimodal.families import Family
from multimodal.layout import Layout
from multimodal.observation import LayerAttention, VisionObservation
from multimodal.vision import Normalisation, watch_vision


@dataclass(frozen=True)
class CalibrationSample:
    """One sample, and the unpruned model's reference on it.

    Args:
        embeds: input embeddings, visual features merged in ``[L, C]``.
        is_visual: True at visual tokens ``[L]``.
        layouts: of its images.
        vision: what the vision tower showed of its tiles.
        reference: last prompt token's last hidden state, after the final norm, unpruned ``[C]``, float32.
    """

    embeds: Tensor
    is_visual: Tensor
    layouts: Sequence[Layout]
    vision: VisionObservation
    reference: Tensor

    def save(self, path: Path) -> None:
        """Write the file, so that a reader finds either all of it or nothing.

        Raises:
            FlowpruneError: the disk is full or cannot be written.
        """
        tensors = {"embeds": self.embeds, "is_visual": self.is_visual, "reference": self.reference}
        if self.vision.entropy is not None:
            tensors["entropy"] = self.vision.entropy
        for layer, seen in self.vision.layers.items():
            received = seen.with_received().received if seen.received is None else seen.received
            assert received is not None
            tensors |= {f"queries.{layer}": seen.queries, f"keys.{layer}": seen.keys, f"received.{layer}": received}
        metadata = {
            "layouts": json.dumps([asdict(layout) for layout in self.layouts]),
            "scaling": json.dumps({layer: seen.scaling for layer, seen in self.vision.layers.items()}),
            "class_tokens": str(self.vision.class_tokens),
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            raise FlowpruneError(
                f"The calibration cache cannot be written to {path.parent} ({error}): free space or set cache=FOLDER."
            ) from error
        finally:
            temporary.unlink(missing_ok=True) if path.parent.exists() else None

    @classmethod
    def load(cls, path: Path) -> "CalibrationSample":
        """Read a sample back; tensors are memory-mapped."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        layers = {
            int(layer): LayerAttention(
                tensors[f"queries.{layer}"], tensors[f"keys.{layer}"], scaling, tensors[f"received.{layer}"]
            )
            for layer, scaling in json.loads(metadata["scaling"]).items()
        }
        return cls(
            embeds=tensors["embeds"],
            is_visual=tensors["is_visual"],
            layouts=[_layout(data) for data in json.loads(metadata["layouts"])],
            vision=VisionObservation(layers, tensors.get("entropy"), int(metadata["class_tokens"])),
            reference=tensors["reference"],
        )


def _layout(data: Mapping[str, Any]) -> Layout:
    size = data["image_size"]
    return Layout(
        grids=tuple((rows, columns) for rows, columns in data["grids"]),
        newlines=tuple(data["newlines"]),
        tiles=data["tiles"],
        image_size=None if size is None else (size[0], size[1]),
    )


@torch.inference_mode()
def observe_sample(
    family: Family, inputs: Mapping[str, Tensor], vision_layers: Sequence[int], normalisation: Normalisation
) -> CalibrationSample:
    """Run the unpruned model on one sample and note what the search needs.

    Args:
        family: of the model.
        inputs: the processor's output for one sample, with at least one image.
        vision_layers: vision layers that the search may choose.
        normalisation: mean and standard deviation of the image processor.
    """
    noted: dict[str, Any] = {}

    def note_images(layouts: list[Layout], vision: VisionObservation) -> None:
        noted["layouts"], noted["vision"] = layouts, vision

    def note_embeds(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted["embeds"] = kwargs["inputs_embeds"][0]

    def note_reference(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        noted["reference"] = output.last_hidden_state[0, -1].float()

    handles = [
        family.text_model.register_forward_pre_hook(note_embeds, with_kwargs=True),
        family.text_model.register_forward_hook(note_reference),
    ]
    try:
        with watch_vision(family, vision_layers, normalisation, note_images):
            family.base(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return CalibrationSample(is_visual=inputs["input_ids"][0] == family.image_token_id, **noted)
