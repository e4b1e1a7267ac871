"""Calibration samples: what the search must know of each (image, prompt) pair, cached so the vision tower runs once.

One safetensors file a sample, written atomically and memory-mapped, with the layouts in its metadata; workers share
the folder. It holds the evidence that was asked for, and nothing that grows with the square of the tokens. Nothing is
pickled.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from multimodal import FlowpruneError
from multimodal.adaptive import varieties
from multimodal.evidence import VisionEvidence, VisionRequest
from multimodal.families import Modules
from multimodal.layout import Layout
from multimodal.runtime.prompt import locate
from multimodal.runtime.watch import Encoded, Modality, Normalization, watch_vision

FORMAT = 5  # of the files; part of a cache's key
TENSORS = ("embeds", "owner", "position_ids", "reference")
OPTIONAL_TENSORS = ("blocks", "deepstack")
INPUTS = "inputs."


@dataclass(frozen=True)
class CalibrationSample:
    """One sample, and the unpruned model's reference on it.

    Args:
        embeds: input embeddings, visual features merged in ``[L, C]``.
        owner: which image or video each token belongs to ``[L]``; −1: none.
        position_ids: ``[L]``, or ``[axes, L]``.
        layouts: of its images and videos.
        evidence: what the vision tower showed of their views, by size of view.
        reference: last prompt token's last hidden state, after the final norm, unpruned ``[C]``, float32.
        blocks: tokens of one block attend to each other both ways ``[L]``, −1: none; None: no token does.
        deepstack: features that are added to the visual tokens after the first layers ``[layers, visual tokens, C]``.
        inputs: the processor's output, for methods that prune inside the vision tower, which has to run again; else
            empty.
    """

    embeds: Tensor
    owner: Tensor
    position_ids: Tensor
    layouts: Sequence[Layout]
    evidence: Sequence[VisionEvidence]
    reference: Tensor
    blocks: Tensor | None = None
    deepstack: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_visual(self) -> Tensor:
        """True at visual tokens ``[L]``."""
        return self.owner >= 0

    def visual_index(self, image: int) -> Tensor:
        """Index of the visual tokens of one of :attr:`layouts` ``[visual tokens]``."""
        return (self.owner == image).nonzero()[:, 0]

    @property
    def varieties(self) -> list[float]:
        """What each of :attr:`layouts` has to see (:func:`multimodal.adaptive.variety`)."""
        own = enumerate(self.layouts)
        return varieties([self.embeds[self.visual_index(image)[layout.patch_index]] for image, layout in own])

    def save(self, path: Path) -> None:
        """Write the file, so that a reader finds either all of it or nothing.

        Raises:
            FlowpruneError: the disk is full or cannot be written.
        """
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {name: t for name in OPTIONAL_TENSORS if (t := getattr(self, name)) is not None}
        for number, seen in enumerate(self.evidence):
            tensors |= {f"evidence.{number}.{name}": tensor for name, tensor in seen.tensors().items()}
        tensors |= {f"{INPUTS}{name}": tensor for name, tensor in self.inputs.items()}
        metadata = {
            "layouts": json.dumps([asdict(layout) for layout in self.layouts]),
            "evidence": json.dumps([seen.described() for seen in self.evidence]),
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
            temporary.replace(path)
        except (OSError, RuntimeError, SafetensorError) as error:
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
            inputs={name.removeprefix(INPUTS): t for name, t in tensors.items() if name.startswith(INPUTS)},
            layouts=[_layout(data) for data in json.loads(metadata["layouts"])],
            evidence=[_evidence(data, number, tensors) for number, data in enumerate(json.loads(metadata["evidence"]))],
        )


def _evidence(described: Mapping[str, Any], number: int, tensors: Mapping[str, Tensor]) -> VisionEvidence:
    start = f"evidence.{number}."
    own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    return VisionEvidence.restored(described, own)


def _layout(data: Mapping[str, Any]) -> Layout:
    size = data["image_size"]
    return Layout(
        grids=tuple((rows, columns) for rows, columns in data["grids"]),
        newlines=tuple(data["newlines"]),
        views=tuple(data["views"]),
        image_size=None if size is None else (size[0], size[1]),
        video=data["video"],
    )


def observe_sample(
    modules: Modules,
    inputs: Mapping[str, Tensor],
    requests: Sequence[VisionRequest],
    normalization: Normalization | None,
    keep_inputs: bool = False,
) -> CalibrationSample:
    """Run the unpruned model on one sample and note what the search needs.

    Args:
        modules: of the model.
        inputs: the processor's output for one sample, with at least one image or video.
        requests: what the search may ask of the vision tower.
        normalization: mean and standard deviation of the image processor.
        keep_inputs: whether the vision tower will have to run again.
    """
    [sample] = observe_samples(modules, inputs, requests, normalization)
    return replace(sample, inputs=dict(inputs)) if keep_inputs else sample


@torch.inference_mode()
def observe_samples(
    modules: Modules,
    inputs: Mapping[str, Tensor],
    requests: Sequence[VisionRequest],
    normalization: Normalization | None,
) -> list[CalibrationSample]:
    """Run the unpruned model on several samples at once, and note of each what the search needs.

    Args:
        modules: of the model.
        inputs: the processor's output for them, padded on the left; each has an image or video.
        requests: what the search may ask of the vision tower.
        normalization: mean and standard deviation of the image processor.
    """
    noted: dict[str, Any] = {}
    encoded: dict[Modality, Encoded] = {}
    evidence: list[VisionEvidence] = []

    def note_encoded(modality: Modality, output: Any, layouts: list[Layout], seen: list[VisionEvidence]) -> None:
        first = sum(len(layout.views) for each in encoded.values() for layout in each.layouts)
        encoded[modality] = Encoded(layouts)
        evidence.extend(each.shifted(first) for each in seen)

    def note_inputs(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        noted.update(kwargs)

    def note_reference(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        noted["reference"] = output.last_hidden_state[:, -1].float()

    geometry, ids = modules.geometry, inputs["input_ids"].cpu().numpy()
    valid = np.ones(ids.shape, dtype=bool)
    if (mask := inputs.get("attention_mask")) is not None:
        valid &= mask.cpu().numpy() != 0
    own_positions = {}
    if geometry.rotary_axes == 1 and not valid.all():  # else padding would be counted
        counted = np.maximum(valid.cumsum(1) - 1, 0) + geometry.first_position
        own_positions = {"position_ids": torch.from_numpy(counted).to(inputs["input_ids"].device)}
    handles = [
        modules.text_model.register_forward_pre_hook(note_inputs, with_kwargs=True),
        modules.text_model.register_forward_hook(note_reference),
    ]
    try:
        with watch_vision(modules, requests, normalization, note_encoded):
            modules.base(**inputs, **own_positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    prompt = locate(geometry, ids, valid, encoded)
    blocks, levels = geometry.bidirectional_blocks(inputs), noted.get("deepstack_visual_embeds")
    positions = noted.get("position_ids")
    sizes = prompt.is_visual.sum(1).tolist()
    deepstack = torch.stack(list(levels)).split(sizes, 1) if levels else None
    views = _views(encoded)
    samples = []
    for row, padding in enumerate((~valid).sum(1).tolist()):
        images = [image for image in prompt.images if image.row == row]
        owner = torch.full((ids.shape[1] - padding,), -1)
        for number, image in enumerate(images):
            owner[torch.from_numpy(image.index - padding)] = number
        own_views = [view for image in images for source in image.sources for view in views[source]]
        parts = evidence if len(ids) == 1 else [each.of_views(own_views) for each in evidence]
        samples.append(
            CalibrationSample(
                embeds=noted["inputs_embeds"][row, padding:],
                owner=owner,
                position_ids=torch.arange(len(owner)) if positions is None else _row(positions, row)[..., padding:],
                layouts=[image.layout for image in images],
                evidence=[part for part in parts if part is not None],
                reference=noted["reference"][row],
                blocks=None if blocks is None else blocks[row, padding:],
                deepstack=None if deepstack is None else deepstack[row],
            )
        )
    return samples


def _views(encoded: Mapping[Modality, Encoded]) -> list[range]:
    """The views of each image or video, of all that was encoded."""
    numbers = [len(layout.views) for each in encoded.values() for layout in each.layouts]
    return [range(end - number, end) for number, end in zip(numbers, accumulate(numbers), strict=True)]


def _row(positions: Tensor, row: int) -> Tensor:
    """Of position ids ``[B or 1, L]``, or ``[axes, B or 1, L]``."""
    return positions[..., row if positions.shape[-2] > 1 else 0, :]
