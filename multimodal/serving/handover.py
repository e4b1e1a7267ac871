"""What is left of a prompt's images before the language model, for an engine that reads ready embeddings."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import Geometry, modules_of
from multimodal.runtime.hooks import Hook, MethodHook
from multimodal.runtime.pruner import prune
from multimodal.serving.rows import LeftOfImage


@torch.inference_mode()
def hand_over(model: PreTrainedModel, config: PruningConfig, inputs: Mapping[str, Any]) -> list[list[LeftOfImage]]:
    """Encode a batch of prompts and take the step before the language model, of which no layer runs.

    Args:
        model: of a family whose images are one run of placeholders, and only looked at before the language model.
        config: one step, before the language model.
        inputs: what the processor made of the prompts.

    Returns:
        For each prompt its images, in order.

    Raises:
        FlowpruneError: the config or the family cannot be served so.
    """
    modules = modules_of(model)
    _check_family(modules.geometry)
    if [step.layer for step in config.schedule] != [0]:
        raise FlowpruneError(
            "Ready embeddings hold what one step before the language model leaves, and this config has others: search "
            "with serving=vllm, or serve with engine=transformers."
        )
    unpruned: dict[str, Tensor | None] = {}
    embeds = torch.empty(0)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        unpruned["position_ids"] = kwargs.get("position_ids")

    def stop(_: Any, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        nonlocal embeds
        embeds = kwargs["inputs_embeds"]
        return BaseModelOutputWithPast(last_hidden_state=embeds)

    with ExitStack() as stack:
        before = modules.text_model.register_forward_pre_hook(Hook(enter), with_kwargs=True)
        stack.callback(before.remove)
        stack.callback(MethodHook(modules.text_model, "forward", stop).remove)
        pruner = stack.enter_context(prune(model, config))
        modules.base(**inputs, use_cache=False)
        prefill = pruner.prefill
    batch, length = inputs["input_ids"].shape
    if prefill is None:
        return [[] for _ in range(batch)]
    given = unpruned["position_ids"]
    positions = torch.arange(length).expand(1, batch, -1) if given is None else given.cpu()
    positions = positions.view(-1, *positions.shape[-2:])[-modules.geometry.rotary_axes :].expand(-1, batch, -1)
    segment = prefill.segments[0]
    index = segment.index.where(segment.valid, -1).cpu()
    rows: list[list[LeftOfImage]] = [[] for _ in range(batch)]
    for image in sorted(prefill.prompt.images, key=lambda image: (image.row, image.index[0])):
        if image.index[-1] - image.index[0] + 1 != len(image.index):
            raise FlowpruneError(
                f"An image of {type(model).__name__} is broken by other tokens, which ready embeddings cannot hold: "
                "serve it with engine=transformers."
            )
        places = torch.from_numpy(image.index)
        slots = torch.isin(index[image.row], places).nonzero().squeeze(1)
        own = positions[:, image.row]
        first = int(own[:, places].amin())
        rows[image.row].append(
            LeftOfImage(
                features=embeds[image.row, slots.to(embeds.device)],
                positions=own[:, index[image.row, slots]] - first,
                span=int(own[:, places].amax()) + 1 - first,
                visual_tokens=len(places),
            )
        )
    return rows


def _check_family(geometry: Geometry) -> None:
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
