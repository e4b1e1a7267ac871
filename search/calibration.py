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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from multimodal import FlowpruneError
from multimodal.families import Family
from multimodal.layout import Layout
from multimodal.observation import LayerAttention, MeanAttention, VisionObservation
from multimodal.vision import Normalisation, watch_vision

FORMAT = 2  # of the files; part of a cache's key
TENSORS = ("embeds", "is_visual", "entropy", "reference")


@dataclass(frozen=True)
class CalibrationSample:
    """One sample, and the unpruned model's reference on it.

    Args:
        embeds: input embeddings, visual features merged in ``[L, C]``.
        is_visual: True at visual tokens ``[L]``.
        layouts: of its images.
        attention: head-mean attention of its tiles, by vision layer; −1 feeds the projector.
        entropy: bits of each patch ``[tiles, patches]``.
        class_tokens: leading tower tokens that are no patch.
        reference: last prompt token's last hidden state, after the final norm, unpruned ``[C]``, float32.
    """

    embeds: Tensor
    is_visual: Tensor
    layouts: Sequence[Layout]
    attention: Mapping[int, MeanAttention]
    entropy: Tensor
    class_tokens: int
    reference: Tensor

    @property
    def vision(self) -> VisionObservation:
        """What the vision tower showed, as methods read it."""
        return VisionObservation(self.attention, self.entropy, self.class_tokens)

    def save(self, path: Path) -> None:
        """Write the file, so that a reader finds either all of it or nothing.

        Raises:
            FlowpruneError: the disk is full or cannot be written.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        for layer, seen in self.attention.items():
            tensors |= {f"weights.{layer}": seen.weights, f"column_means.{layer}": seen.column_means}
        metadata = {
            "layouts": json.dumps([asdict(layout) for layout in self.layouts]),
            "vision_layers": json.dumps(list(self.attention)),
            "class_tokens": str(self.class_tokens),
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
        """Read a sample back; tensors are memory-mapped.

        Raises:
            FlowpruneError: the file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise FlowpruneError(f"The cached sample {path} is damaged ({error}): delete {path.parent}.") from error
        return cls(
            **{name: tensors[name] for name in TENSORS},
            layouts=[_layout(data) for data in json.loads(metadata["layouts"])],
            attention={
                layer: MeanAttention(tensors[f"weights.{layer}"], tensors[f"column_means.{layer}"])
                for layer in json.loads(metadata["vision_layers"])
            },
            class_tokens=int(metadata["class_tokens"]),
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
        noted["layouts"], noted["entropy"], noted["class_tokens"] = layouts, vision.entropy, vision.class_tokens
        dtype = torch.float32 if family.model.dtype == torch.float32 else torch.float16
        noted["attention"] = {
            layer: MeanAttention.of(seen, dtype)
            for layer, seen in vision.layers.items()
            if isinstance(seen, LayerAttention)
        }

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
