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

from multimodal.config import Positions
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
        """The placeholder of one visual token of an image."""
        return self.config.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of one visual token of a video; None if videos are read as images, or not at all."""
        return getattr(self.config, "video_token_id", None)

    @property
    def patch_size(self) -> int:
        """Patch side in pixels."""
        return self.config.vision_config.patch_size

    @property
    def positions(self) -> tuple[Positions, ...]:
        """What can be done with position ids; several rotary axes cannot be numbered anew."""
        return ("compact", "original") if self.rotary_axes == 1 else ("original",)

    @property
    def deepstack_layers(self) -> int:
        """First language-model layers after which visual features are added to the visual tokens once more."""
        return 0

    #: axes of the language model's rotary embedding
    rotary_axes: ClassVar[int] = 1
    #: whether :meth:`bidirectional_blocks` has any
    bidirectional: ClassVar[bool] = False
    #: whether a sliding window hides tokens of one's own block, too
    window_cuts_blocks: ClassVar[bool] = False
    #: position id of a sequence's first token
    first_position: ClassVar[int] = 0
    #: whether views whose visual tokens touch are tiles of one image
    joins_touching_views: ClassVar[bool] = False

    @property
    def vision_layers(self) -> Sequence[nn.Module]:
        """The vision tower's layers that attend to a whole view, up to the one whose output feeds the projector."""
        depth = self.config.vision_config.num_hidden_layers
        stack = next(m for m in self.vision_tower.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)
        return list(stack)[: max(state % (depth + 1) for state in self.feature_states)]

    @property
    def feature_states(self) -> Sequence[int]:
        """Which of the vision tower's hidden states the projector is given: 0 before its first layer, −1 the last."""
        states = getattr(self.config, "vision_feature_layer", -1)
        return [states] if isinstance(states, int) else states

    def vision_layer(self, layer: int) -> nn.Module:
        """One of :attr:`vision_layers`, counted back from the last (−1).

        Raises:
            FlowpruneError: the tower has no such layer.
        """
        layers = self.vision_layers
        if not -len(layers) <= layer < 0:
            raise FlowpruneError(
                f"vision_layer {layer} does not exist: the tower has {len(layers)} layers before its projector that "
                f"attend to a whole view, so choose one of −{len(layers)} to −1."
            )
        return layers[layer]

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Pixels of one random image, as the model's forward takes them: for timing without a processor.

        Args:
            size: (height, width) of the image before it is cut into tiles; None: that of the tower.
        """
        side = self.config.vision_config.image_size
        return {"pixel_values": torch.randn(1, 3, side, side, dtype=self.model.dtype, device=self.model.device)}

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What the model must be told of each token beside its id ``[B, L]``."""
        return {}

    def patch_pixels(self, pixels: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """The vision tower's input, patch by patch, in the order in which the tower attends to them.

        Args:
            pixels: as the tower is given them; ``[views, 3, H, W]`` unless a family says otherwise.
            layouts: of what is encoded together.

        Returns:
            ``[patches of all views, 3, pixels of a patch]``.
        """
        side = self.patch_size
        rows, columns = pixels.shape[-2] // side, pixels.shape[-1] // side
        whole = pixels[..., : rows * side, : columns * side]
        patches = whole.unflatten(-1, (columns, side)).unflatten(-3, (rows, side))  # views, 3, rows, p, columns, p
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).flatten(-2)

    def bidirectional_blocks(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Which tokens attend to each other both ways at prefill: those of one block ``[B, L]``; −1: none.

        Args:
            inputs: the keyword arguments of the base model's forward.
        """
        return None

    @abstractmethod
    def layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        """The layout of every image of a batch, in the order of their placeholders.

        Args:
            inputs: the keyword arguments of the base model's ``get_image_features``.
        """

    def video_layouts(self, inputs: Mapping[str, Any]) -> list[Layout]:
        """The layout of every video of a batch, in the order of their placeholders.

        Args:
            inputs: the keyword arguments of the base model's ``get_video_features``.
        """
        return []

    @abstractmethod
    def pack(self, views: Sequence[Tensor], layouts: Sequence[Layout]) -> list[Tensor]:
        """Send a map over the tower's patches through the model's packing code.

        Args:
            views: ``[patches, channels]`` of each view of all images or videos.
            layouts: of the images or videos.

        Returns:
            ``[visual tokens, channels]`` for each image or video; NaN at newline tokens.
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
