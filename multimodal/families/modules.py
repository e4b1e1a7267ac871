"""Where the parts of a live model are: its base model, language model and vision tower."""

import inspect
from functools import cached_property
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from multimodal.errors import FlowpruneError
from multimodal.families.geometry import Geometry, check_supported, geometry_of
from multimodal.versions import CACHE_NAMES


class Modules:
    """Where the parts of a live model are.

    Args:
        model: a ``…ForConditionalGeneration`` of a supported family, or what PEFT, ``torch.compile`` or a data-parallel
            wrapper made of one.

    Raises:
        FlowpruneError: there is no such model in it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = _unwrapped(model)
        self.geometry: Geometry = geometry_of(self.model.config)
        if not isinstance(getattr(self.model, "model", None), nn.Module):
            raise FlowpruneError(
                f"{type(self.model).__name__} has no base model below it: pass the ForConditionalGeneration model of "
                "which it is a part."
            )

    @property
    def base(self) -> Any:
        """The model without its head: the module that is handed token ids and pixels."""
        return self.model.model

    @property
    def text_model(self) -> PreTrainedModel:
        """The language model's decoder, with ``layers`` and a final ``norm``."""
        return self.base.get_submodule(self.geometry.text_path)

    @property
    def text_layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        return cast(nn.ModuleList, self.text_model.layers)

    @cached_property
    def cache_name(self) -> str:
        """What the text model calls its cache argument."""
        parameters = inspect.signature(inspect.unwrap(type(self.text_model).forward)).parameters
        return next(name for name in CACHE_NAMES if name in parameters)

    @property
    def vision_tower(self) -> PreTrainedModel:
        """The vision encoder."""
        return self.base.get_submodule(self.geometry.tower_path)

    def vision_layer(self, layer: float) -> nn.Module:
        """The tower's layer that :meth:`Geometry.vision_layer` names: −1 is the last before the projector.

        Raises:
            FlowpruneError: the tower has no such layer.
        """
        number, depth = self.geometry.vision_layer(layer), self.geometry.vision_layers
        for part in self.vision_tower.modules():
            if isinstance(part, nn.ModuleList) and len(part) == depth:
                return part[number]
        raise FlowpruneError(
            f"The vision tower has no stack of the {depth} layers that its config names: prune a model whose tower is "
            "whole."
        )


def _unwrapped(model: Any) -> PreTrainedModel:
    """The model of a supported family inside of wrappers around it."""
    while not (isinstance(model, PreTrainedModel) and model.config.model_type in Geometry.registry):
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DataParallel and DistributedDataParallel
            model = model.module
        else:
            check_supported(getattr(getattr(model, "config", None), "model_type", None))
            raise FlowpruneError(
                f"A {type(model).__name__} is not a transformers model: pass what AutoModelForImageTextToText loads."
            )
    return model


def modules_of(model: nn.Module) -> Modules:
    """The parts of a model, without the wrappers around it.

    Raises:
        FlowpruneError: it is not supported.
    """
    return Modules(model)
