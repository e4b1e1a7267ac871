"""Calibration samples: what the search must know of each (image, prompt) pair, cached so the vision tower runs once.

One safetensors file a sample, written atomically and memory-mapped, with the layouts in its metadata; workers share
the folder. Nothing is pickled.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from multimodal.prompt import Encoded, locate
from multimodal.vision import Modality, Normalisation, watch_vision

FORMAT = 3  # of the files; part of a cache's key
TENSORS = ("embeds", "owner", "position_ids", "reference")
OPTIONAL_TENSORS = ("blocks", "deepstack")


@dataclass(frozen=True)
class CalibrationSample:
    """One sample, and the unpruned model's reference on it.

    Args:
        embeds: input embeddings, visual features merged in ``[L, C]``.
        owner: which image or video each token belongs to ``[L]``; −1: none.
        position_ids: ``[L]``, or ``[axes, L]``.
        layouts: of its images and videos.
        vision: what the vision tower showed of their views.
        reference: last prompt token's last hidden state, after the final norm, unpruned ``[C]``, float32.
        blocks: tokens of one block attend to each other both ways ``[L]``, −1: none; None: no token does.
        deepstack: features that are added to the visual tokens after the first layers ``[layers, visual tokens, C]``.
    """

    embeds: Tensor
    owner: Tensor
    position_ids: Tensor
    layouts: Sequence[Layout]
    vision: Sequence[VisionObservation]
    reference: Tensor
    blocks: Tensor | None = None
    deepstack: Tensor | None = None

    @property
    def is_visual(self) -> Tensor:
        """True at visual tokens ``[L]``."""
        return self.owner >= 0

    def places(self, image: int) -> Tensor:
        """Places of the visual tokens of one of :attr:`layouts` ``[visual tokens]``."""
        return (self.owner == image).nonzero()[:, 0]

    def save(self, path: Path) -> None:
        """Write the file, so that a reader finds either all of it or nothing.

        Raises:
            FlowpruneError: the disk is full or cannot be written.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {name: t for name in OPTIONAL_TENSORS if (t := getattr(self, name)) is not None}
        vision = []
        for number, seen in enumerate(self.vision):
            assert seen.entropy is not None
            tensors[f"entropy.{number}"] = seen.entropy
            for layer, attention in seen.layers.items():
                assert isinstance(attention, MeanAttention)
                tensors[f"weights.{number}.{layer}"] = attention.weights
                tensors[f"column_means.{number}.{layer}"] = attention.column_means
            vision.append({"views": seen.views, "layers": list(seen.layers), "class_tokens": seen.class_tokens})
        metadata = {
            "layouts": json.dumps([asdict(layout) for layout in self.layouts]),
            "vision": json.dumps(vision),
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
            **{name: tensors[name] for name in (*TENSORS, *OPTIONAL_TENSORS) if name in tensors},
            layouts=[_layout(data) for data in json.loads(metadata["layouts"])],
            vision=[_vision(data, number, tensors) for number, data in enumerate(json.loads(metadata["vision"]))],
        )


def _vision(data: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> VisionObservation:
    layers = {
        layer: MeanAttention(tensors[f"weights.{number}.{layer}"], tensors[f"column_means.{number}.{layer}"])
        for layer in data["layers"]
    }
    return VisionObservation(tuple(data["views"]), layers, tensors[f"entropy.{number}"], data["class_tokens"])


def _layout(data: Mapping[str, Any]) -> Layout:
    size = data["image_size"]
    return Layout(
        grids=tuple((rows, columns) for rows, columns in data["grids"]),
        newlines=tuple(data["newlines"]),
        views=tuple(data["views"]),
        image_size=None if size is None else (size[0], size[1]),
        video=data["video"],
    )


@torch.inference_mode()
def observe_sample(
    family: Family, inputs: Mapping[str, Tensor], vision_layers: Sequence[int], normalisation: Normalisation
) -> CalibrationSample:
    """Run the unpruned model on one sample and note what the search needs.

    Args:
        family: of the model.
        inputs: the processor's output for one sample, with at least one image or video.
        vision_layers: vision layers that the search may choose.
        normalisation: mean and standard deviation of the image processor.
    """
    noted: dict[str, Any] = {}
    encoded: dict[Modality, Encoded] = {}
    vision: list[VisionObservation] = []

    def note_encoded(modality: Modality, layouts: list[Layout], seen: list[VisionObservation]) -> None:
        first = sum(len(each.views) for each in vision)
        encoded[modality] = (layouts, None)
        vision.extend(_cached(each, first, family.model.dtype) for each in seen)

    def note_inputs(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeds, positions = kwargs["inputs_embeds"][0], kwargs.get("position_ids")
        noted["embeds"] = embeds
        noted["position_ids"] = torch.arange(len(embeds)) if positions is None else positions[..., 0, :]
        if levels := kwargs.get("deepstack_visual_embeds"):
            noted["deepstack"] = torch.stack(list(levels))

    def note_reference(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        noted["reference"] = output.last_hidden_state[0, -1].float()

    handles = [
        family.text_model.register_forward_pre_hook(note_inputs, with_kwargs=True),
        family.text_model.register_forward_hook(note_reference),
    ]
    try:
        with watch_vision(family, vision_layers, normalisation, note_encoded):
            family.base(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    prompt = locate(family, inputs["input_ids"], encoded, family.bidirectional_blocks(inputs))
    owner = torch.full((len(noted["embeds"]),), -1)
    for image, places in enumerate(prompt.places):
        owner[places] = image
    blocks = None if prompt.blocks is None else prompt.blocks[0]
    return CalibrationSample(owner=owner, layouts=prompt.layouts, vision=vision, blocks=blocks, **noted)


def _cached(seen: VisionObservation, first: int, dtype: torch.dtype) -> VisionObservation:
    """The same with mean attentions, its views counted from ``first``."""
    stored = torch.float32 if dtype == torch.float32 else torch.float16
    layers = {
        layer: MeanAttention.of(attention, stored)
        for layer, attention in seen.layers.items()
        if isinstance(attention, LayerAttention)
    }
    return replace(seen, views=tuple(first + view for view in seen.views), layers=layers)
