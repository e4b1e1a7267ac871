"""What the pruner must know of a model family: where its parts are and how its visual tokens are laid out.

A family gives accessors only; it knows nothing of methods. It never re-derives a layout: a map over patches goes
through the *model's own* packing code as a feature of few channels, with NaN for newline tokens.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multimodal.errors import FlowpruneError
from multimodal.layout import Layout


class Family(ABC):
    """Accessors of one model.

    Args:
        model: a ``…ForConditionalGeneration`` of this family.
    """

    model_type: ClassVar[str]
    registry: ClassVar[dict[str, type["Family"]]] = {}

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config

    def __init_subclass__(cls) -> None:
        cls.registry[cls.model_type] = cls

    @property
    def base(self) -> Any:
        """The model without its head: the module that is handed token ids and pixels."""
        return self.model.model

    @property
    def text_model(self) -> PreTrainedModel:
        """The language model's decoder, with ``layers`` and a final ``norm``."""
        return self.base.language_model

    @property
    def text_layers(self) -> nn.ModuleList:
        """The decoder's layers, in order."""
        return cast(nn.ModuleList, self.text_model.layers)

    @cached_property
    def cache_name(self) -> str:
        """What the text model calls its cache argument: ``cache`` now, ``past_key_values`` before."""
        signature = inspect.signature(inspect.unwrap(type(self.text_model).forward))
        return "cache" if "cache" in signature.parameters else "past_key_values"

    @property
    def vision_tower(self) -> PreTrainedModel:
        """The vision encoder."""
        return self.base.vision_tower

    @property
    def image_token_id(self) -> int:
        """The placeholder of one visual token."""
        return self.config.image_token_id

    @property
    def patch_size(self) -> int:
        """Patch side in pixels."""
        return self.config.vision_config.patch_size

    def vision_layer(self, layer: int) -> nn.Module:
        """A layer of the vision tower, counted back from the one whose output feeds the projector (−1).

        Raises:
            FlowpruneError: the tower has no such layer.
        """
        depth = self.config.vision_config.num_hidden_layers
        stack = next(m for m in self.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
        feature = self.config.vision_feature_layer
        last_state = max(state % (depth + 1) for state in ([feature] if isinstance(feature, int) else feature))
        if not 0 <= last_state + layer < depth:
            raise FlowpruneError(
                f"vision_layer {layer} does not exist: the tower has {last_state} layers before its projector, "
                f"so choose one of −{last_state} to −1."
            )
        return stack[last_state + layer]

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Pixels of one random image, as the model's forward takes them: for timing without a processor.

        Args:
            size: (height, width) of the image before it is cut into tiles; None: that of the tower.
        """
        side = self.config.vision_config.image_size
        return {"pixel_values": torch.randn(1, 3, side, side, dtype=self.model.dtype, device=self.model.device)}

    @abstractmethod
    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        """The layout of every image of a batch, in the order of their placeholders.

        Args:
            inputs: the keyword arguments of the base model's forward.
        """

    @abstractmethod
    def pack(self, patches: Tensor, layouts: Sequence[Layout]) -> list[Tensor]:
        """Send a map over the tower's patches through the model's packing code.

        Args:
            patches: ``[tiles of all images, patches, channels]``.
            layouts: of the images.

        Returns:
            ``[visual tokens, channels]`` for each image; NaN at newline tokens.
        """


def check_supported(model_type: str | None) -> None:
    """Refuse a family there is no file for.

    Raises:
        FlowpruneError: names the supported ones.
    """
    if model_type not in Family.registry:
        raise FlowpruneError(
            f"Models of type {model_type!r} are not supported: choose one of {', '.join(sorted(Family.registry))}."
        )


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model.

    Raises:
        FlowpruneError: it is not supported.
    """
    model_type = getattr(model.config, "model_type", None)
    check_supported(model_type)
    return Family.registry[str(model_type)](model)
