"""What is left of a prompt's images before the language model, for an engine that reads ready embeddings."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import Geometry, Modules, modules_of
from multimodal.runtime.hooks import Hook, MethodHook
from multimodal.runtime.outcome import Outcome
from multimodal.runtime.pruner import prune
from multimodal.serving.rows import LeftOfImage


@dataclass(frozen=True)
class HandedOver:
    """A batch of prompts as far as before the language model.

    Args:
        rows: for each prompt its images, in order.
        tower_seconds: of vision tower and projector.
        step_seconds: of the step.
    """

    rows: list[list[LeftOfImage]]
    tower_seconds: float
    step_seconds: float


@torch.inference_mode()
def hand_over(model: PreTrainedModel, config: PruningConfig, inputs: Mapping[str, Any]) -> HandedOver:
    """Encode a batch of prompts and take the step before the language model, of which no layer runs.

    Args:
        model: of a family whose images are one run of placeholders, and only looked at before the language model.
        config: one step, before the language model.
        inputs: what the processor made of the prompts.

    Raises:
        FlowpruneError: the config or the family cannot be served so.
    """
    modules = modules_of(model)
    check_family(modules.geometry)
    if [step.layer for step in config.schedule] != [0]:
        raise FlowpruneError(
            "Ready embeddings hold what one step before the language model leaves, and this config has others: search "
            "with serving=vllm, or serve with engine=transformers."
        )
    seen = _Seen(modules.text_model.device)
    with ExitStack() as stack:
        before = modules.text_model.register_forward_pre_hook(Hook(seen.enter), with_kwargs=True)
        stack.callback(before.remove)
        stack.callback(MethodHook(modules.text_model, "forward", seen.stop).remove)
        pruner = stack.enter_context(prune(model, config))
        seen.note_time()
        modules.base(**inputs, use_cache=False)
        outcome = pruner.outcome
    began, encoded, reduced = seen.times
    if outcome is None:
        return HandedOver([[] for _ in inputs["input_ids"]], encoded - began, 0.0)
    return HandedOver(_images(modules, outcome, seen), encoded - began, reduced - encoded)


class _Seen:
    """What enters the text model before and after the step, and when."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.times: list[float] = []
        self.position_ids: Tensor | None = None
        self.embeds: Tensor

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.position_ids = kwargs.get("position_ids")
        self.note_time()

    def stop(self, _: Any, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """In place of the text model's forward."""
        self.embeds = kwargs["inputs_embeds"]
        self.note_time()
        return BaseModelOutputWithPast(last_hidden_state=self.embeds)

    def note_time(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter())


def _images(modules: Modules, outcome: Outcome, seen: _Seen) -> list[list[LeftOfImage]]:
    prompt, axes = outcome.prompt, modules.geometry.rotary_axes
    batch, length = prompt.valid.shape
    given = torch.arange(length).unsqueeze(0) if seen.position_ids is None else seen.position_ids.cpu()
    positions = given.reshape(-1, *given.shape[-2:])[-axes:].expand(-1, batch, -1)
    segment = outcome.segments[0]
    index = segment.index.where(segment.valid, -1).cpu()
    rows: list[list[LeftOfImage]] = [[] for _ in range(batch)]
    for image in sorted(prompt.images, key=lambda image: (image.row, image.index[0])):
        if image.index[-1] - image.index[0] + 1 != len(image.index):
            raise FlowpruneError(
                f"An image of {modules.geometry.model_type} is broken by other tokens, which ready embeddings cannot "
                "hold: serve it with engine=transformers."
            )
        places, own = torch.from_numpy(image.index), positions[:, image.row]
        slots = torch.isin(index[image.row], places).nonzero().squeeze(1)
        first = int(own[:, places].amin())
        left, span = own[:, index[image.row, slots]] - first, int(own[:, places].amax()) + 1 - first
        if outcome.config.positions == "compact":
            left, span = torch.arange(len(slots)).unsqueeze(0), len(slots)
        features = seen.embeds[image.row, slots.to(seen.embeds.device)]
        rows[image.row].append(LeftOfImage(features, left, span, len(places)))
    return rows


def check_family(geometry: Geometry) -> None:
    """Refuse families whose language model asks more of an image than its embeddings.

    Raises:
        FlowpruneError: one sentence with the reason.
    """
    if geometry.deepstack_layers:
        reason = "adds visual features again inside the language model"
    elif geometry.bidirectional:
        reason = "lets the tokens of an image attend to each other both ways"
    else:
        return
    raise FlowpruneError(
        f"{geometry.model_type} {reason}, which ready embeddings cannot say: serve it with engine=transformers."
    )
