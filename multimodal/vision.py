"""Watch a model look at images: the queries and keys of some vision layers, and the entropy of the patches.

``get_image_features`` is where every transformers version turns pixels into visual tokens (some call it in the forward
pass, some before it in ``generate()``), so that is where images are seen.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from multimodal.families import Family
from multimodal.importance import patch_entropy
from multimodal.layout import Layout
from multimodal.observation import LayerAttention, VisionObservation, observed_attention, unnormalised

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation
OnImages = Callable[[list[Layout], VisionObservation], None]


@contextmanager
def watch_vision(
    family: Family, layers: Sequence[int], normalisation: Normalisation | None, on_images: OnImages
) -> Iterator[None]:
    """Watch a model inside the ``with`` block.

    Args:
        family: of the model.
        layers: vision layers whose queries and keys are noted; −1 feeds the projector.
        normalisation: mean and standard deviation of the image processor, to see entropy; None: not.
        on_images: called with the images' layouts and what the tower showed, each time the model encodes images.
    """
    base, encode = family.base, family.base.get_image_features
    signature = inspect.signature(encode)
    attention: dict[int, LayerAttention] = {}
    pixels: list[Tensor] = []

    def see_attention(layer: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        attention[layer] = LayerAttention(queries, keys, scaling)

    def see_pixels(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels.append(args[0] if args else kwargs["pixel_values"])

    @functools.wraps(encode)
    def watched(*args: Any, **kwargs: Any) -> Any:
        attention.clear()
        pixels.clear()
        output = encode(*args, **kwargs)
        layouts = family.layouts(signature.bind(*args, **kwargs).arguments)
        on_images(layouts, _observation(family.patch_size, dict(attention), pixels[-1], normalisation))
        return output

    observers = {family.vision_layer(layer): functools.partial(see_attention, layer) for layer in layers}
    hook = family.vision_tower.register_forward_pre_hook(see_pixels, with_kwargs=True)
    base.get_image_features = watched
    try:
        with observed_attention(family.vision_tower, observers):
            yield
    finally:
        del base.get_image_features  # the class's own method shows again
        hook.remove()


def _observation(
    patch_size: int, layers: Mapping[int, LayerAttention], pixels: Tensor, normalisation: Normalisation | None
) -> VisionObservation:
    patches = (pixels.shape[-2] // patch_size) * (pixels.shape[-1] // patch_size)
    tokens = max((seen.keys.shape[-2] for seen in layers.values()), default=patches)
    entropy = None
    if normalisation is not None:
        entropy = patch_entropy(unnormalised(pixels, *normalisation), patch_size).flatten(1)
    return VisionObservation(layers, entropy, class_tokens=tokens - patches)
