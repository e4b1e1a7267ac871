"""Why a model, a config or a call cannot be recorded: found before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from multimodal.config import PruningConfig
from multimodal.costs import sliding_window
from multimodal.families import Geometry, Modules
from multimodal.layout import Layout
from multimodal.runtime.hooks import Hook

PLAIN = {"attention_mask", "position_ids", "inputs_embeds", "use_cache", "cache", "past_key_values", "cache_position"}
PLAIN |= {"visual_pos_masks", "deepstack_visual_embeds"}


def model_reason(modules: Modules, config: PruningConfig) -> str | None:
    """Why no prompt of a model can be recorded under a config; None: some can.

    Args:
        modules: of the model.
        config: how it is pruned.
    """
    text = modules.text_model
    if config.adaptive is not None or not config.exact:
        return f"{config.method.name} finds its counts while it reads: set adaptive to null and counts to exact"
    return parts_reason(text, "language model")


def parts_reason(module: PreTrainedModel, name: str) -> str | None:
    """Why a part of a model cannot be recorded as it is; None: it can.

    Args:
        module: the part.
        name: what it is called.
    """
    if len({parameter.device for parameter in module.parameters()}) > 1:
        return f"the {name} lies on several devices"
    if module.device.type == "meta" or any("_hf_hook" in vars(inner) for inner in module.modules()):
        return f"the {name}'s weights are offloaded"
    for inner in module.modules():
        if type(inner).__module__.startswith("peft."):
            return "adapters can be switched: merge them into the model first"
        hooks = (*inner._forward_pre_hooks.values(), *inner._forward_hooks.values())
        if any(not isinstance(hook, Hook) and not _is_librarys(hook) for hook in hooks):
            return f"hooks of others run inside the {name}: remove them"
    return None


def _is_librarys(hook: Any) -> bool:
    """transformers leaves hooks that collect hidden states behind, which do nothing while none are asked for."""
    return getattr(hook, "__module__", "").startswith("transformers.")


def length_reason(modules: Modules, tokens: int) -> str | None:
    """Why a conversation of some length cannot be recorded; None: it can.

    Args:
        modules: of the model.
        tokens: of the unpruned prompt, padded, and the answer that there is room for.
    """
    windows = [sliding_window(modules.text_model.config, layer) for layer in range(len(modules.text_layers))]
    if (window := min((each for each in windows if each is not None), default=tokens)) < tokens:
        return f"sliding windows of {window} tokens are shorter than a prompt with its answer: lower new_tokens"
    return None


def _mode_reason(part: PreTrainedModel, device: torch.device) -> str | None:
    """Why a part of a model cannot be recorded in the mode that it is called in, on a device; None: it can."""
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in part.parameters()):
        return "gradients are on: call the model inside torch.inference_mode()"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on: load the model in the dtype that it is to compute in"
    if part.training:
        return "the model is in training mode: call model.eval()"
    return None


def call_reason(text: PreTrainedModel, cache: Cache | None, kwargs: Mapping[str, Any]) -> str | None:
    """Why a call of the language model cannot be recorded; None: it can.

    Args:
        text: the language model.
        cache: that it is handed; None: none.
        kwargs: its arguments.
    """
    backend = text.config._attn_implementation
    if backend not in ("sdpa", "eager"):
        return f"{backend} finds out about padding while it runs: load the model with attn_implementation='sdpa'"
    if (reason := _mode_reason(text, text.device)) is not None:
        return reason
    for name, value in kwargs.items():
        if name not in PLAIN and (isinstance(value, torch.Tensor) or (name.startswith("output_") and value)):
            return f"{name} is asked for"
    if getattr(text.config, "output_hidden_states", False) or getattr(text.config, "output_attentions", False):
        return "the model's config asks for hidden states or attentions"
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache | StaticCache) or getattr(cache, "offloading", False):
        return f"{type(cache).__name__} keeps its layers elsewhere: leave cache_implementation unset"
    return None


def tower_reason(tower: PreTrainedModel, pixels: Tensor, geometry: Geometry, layouts: Sequence[Layout]) -> str | None:
    """Why a call of a vision tower cannot be recorded; None: it can.

    Args:
        tower: of the model.
        pixels: that it is given.
        geometry: of the model.
        layouts: of what is encoded.
    """
    if (reason := _mode_reason(tower, pixels.device)) is not None:
        return reason
    sizes = [patches for layout in layouts for patches in layout.views]
    whole = len(pixels) == (sum(sizes) if geometry.tower_grids(layouts) else len(sizes))
    if not whole or (pixels.ndim == 4 and len(set(sizes)) > 1):
        return "the vision tower is not given all images at once, or reads images of several sizes"
    return None
