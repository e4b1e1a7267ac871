"""What a model's config alone tells: how its visual tokens are laid out and numbered. No module, no weights.

A family knows nothing of methods, and it never re-derives a layout: a map over patches goes through the *model's own*
packing code as a feature of few channels, with NaN for newline tokens. No model is needed for that: a method of the
model that uses its config alone is called with a stand-in for ``self``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig

from multimodal.errors import FlowpruneError
from multimodal.layout import Layout
from multimodal.options import Positions

#: vision encoders whose layers see a batch of views, each with all of its patches
DENSE_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "internvl_vision", "aimv2", "ovis2")


class Geometry(ABC):
    """The layouts, counts, packing and positions of one model.

    Args:
        config: of a ``…ForConditionalGeneration`` of this family.
    """

    model_type: ClassVar[str]
    registry: ClassVar[dict[str, type["Geometry"]]] = {}

    #: where the vision encoder is: a dotted name below the base model
    tower_path: ClassVar[str] = "vision_tower"
    #: where the language model's decoder is: a dotted name below the base model
    text_path: ClassVar[str] = "language_model"
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

    def __init__(self, config: PretrainedConfig) -> None:
        self.config: Any = config

    def __init_subclass__(cls) -> None:
        cls.registry[cls.model_type] = cls

    # the language model

    @property
    def text_config(self) -> PretrainedConfig:
        """The language model's config."""
        return self.config.get_text_config()

    @property
    def text_layers(self) -> int:
        """How many layers the language model has."""
        return self.text_config.num_hidden_layers

    @property
    def image_token_id(self) -> int:
        """The placeholder of one visual token of an image."""
        return self.config.image_token_id

    @property
    def video_token_id(self) -> int | None:
        """The placeholder of one visual token of a video; None if videos are read as images, or not at all."""
        return getattr(self.config, "video_token_id", None)

    @property
    def positions(self) -> tuple[Positions, ...]:
        """What can be done with position ids; several rotary axes cannot be numbered anew."""
        return ("compact", "original") if self.rotary_axes == 1 else ("original",)

    @property
    def deepstack_layers(self) -> int:
        """First language-model layers after which visual features are added to the visual tokens once more."""
        return 0

    def token_inputs(self, input_ids: Tensor) -> dict[str, Tensor]:
        """What the model must be told of each token beside its id ``[B, L]``."""
        return {}

    def bidirectional_blocks(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Which tokens attend to each other both ways at prefill: those of one block ``[B, L]``; −1: none.

        Args:
            inputs: the keyword arguments of the base model's forward.
        """
        return None

    # the vision tower

    @property
    def patch_size(self) -> int:
        """Patch side in pixels."""
        return self.config.vision_config.patch_size

    @property
    def vision_layers(self) -> int:
        """How many layers the vision tower has."""
        return self.config.vision_config.num_hidden_layers

    @property
    def feature_states(self) -> Sequence[int]:
        """Which of the vision tower's hidden states the projector is given: 0 before its first layer, −1 the last."""
        states = getattr(self.config, "vision_feature_layer", -1)
        return [states] if isinstance(states, int) else states

    @property
    def whole_view_layers(self) -> Sequence[int]:
        """The tower's layers that attend to a whole view, up to the one whose output feeds the projector."""
        return range(max(state % (self.vision_layers + 1) for state in self.feature_states))

    def vision_layer(self, layer: float) -> int:
        """The number in the tower of one of :attr:`whole_view_layers`.

        Args:
            layer: counted back from the last (−1); or, in (0, 1), the share of them that comes before it.

        Raises:
            FlowpruneError: the tower has no such layer.
        """
        layers = self.whole_view_layers
        if not layers:
            raise FlowpruneError(
                f"vision_layer {layer} does not exist: no layer of the tower attends to a whole view before its "
                "projector, so choose a method that reads none."
            )
        if 0 < layer < 1:
            return layers[int(layer * len(layers))]
        if layer != int(layer) or not -len(layers) <= layer < 0:
            raise FlowpruneError(
                f"vision_layer {layer} does not exist: the tower has {len(layers)} layers before its projector that "
                f"attend to a whole view, so choose one of −{len(layers)} to −1."
            )
        return layers[int(layer)]

    @property
    def view_patches(self) -> int:
        """Patches of a view, of a tower whose views are all of one size.

        Raises:
            FlowpruneError: patches cannot leave this tower.
        """
        tower = self.config.vision_config
        if tower.model_type not in DENSE_TOWERS:
            raise FlowpruneError(
                f"Patches cannot leave a tower of type {tower.model_type!r}, which packs its views or merges patches "
                "inside: choose a method that prunes behind it."
            )
        if self.deepstack_layers or len(self.feature_states) > 1:
            raise FlowpruneError(
                "Patches cannot leave this tower, of which the language model reads several layers: choose a method "
                "that prunes behind it."
            )
        size = tower.image_size
        height, width = (size, size) if isinstance(size, int) else size
        side = self.patch_size
        return (height // side) * (width // side)

    # images and videos

    def random_image(self, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
        """Pixels of one random image, as the model's forward takes them: for timing without a processor.

        Args:
            size: (height, width) in pixels of the image before it is cut into tiles; None: that of the tower.

        Returns:
            Pixels of float32 and whatever goes with them, all on the CPU.
        """
        side = self.config.vision_config.image_size
        return {"pixel_values": random_pixels(1, 3, side, side)}

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

    def tower_grids(self, layouts: Sequence[Layout]) -> tuple[tuple[int, int, int], ...]:
        """(grids, rows, columns) of each image or video, in patches, where the tower is told them, as one that packs
        images of any size is; else none."""
        return ()

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
        """Send a map over the tower's patches through the model's packing code, on the device that it is on.

        Args:
            views: ``[patches, channels]`` of each view of all images or videos.
            layouts: of the images or videos.

        Returns:
            ``[visual tokens, channels]`` for each image or video; NaN at newline tokens.
        """


def stand_in(**attributes: Any) -> Any:
    """What a method of a model is given for ``self`` where there is no model."""
    return SimpleNamespace(**attributes)


def random_pixels(*shape: int) -> Tensor:
    """Random pixels of a shape: float32, on the CPU."""
    return torch.randn(shape, dtype=torch.float32, device="cpu")


def integers(sizes: Any) -> Any:
    """Sizes that may be a tensor on any device, as (nested) lists of integers: copied to the host once."""
    if hasattr(sizes, "tolist"):
        return sizes.tolist()
    return [integers(each) for each in sizes] if isinstance(sizes, Iterable) else int(sizes)


def check_supported(model_type: str | None) -> None:
    """Refuse a family there is no file for.

    Raises:
        FlowpruneError: names the supported ones.
    """
    if model_type not in Geometry.registry:
        raise FlowpruneError(
            f"Models of type {model_type!r} are not supported: choose one of {', '.join(sorted(Geometry.registry))}."
        )


def geometry_of(config: PretrainedConfig) -> Geometry:
    """The geometry of the models of a config; none of them is built.

    Raises:
        FlowpruneError: their family is not supported.
    """
    model_type = getattr(config, "model_type", None)
    check_supported(model_type)
    return Geometry.registry[str(model_type)](config)
