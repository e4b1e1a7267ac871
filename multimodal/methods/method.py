"""The contract between a pruning method and the pruner.

A method is a pydantic model of its parameters and one rule. It is called by the pruner, never sees the model, and
knows nothing of counts over layers, gathering, positions, masks or caches. Every tensor has a leading dimension of
images: images of one layout are handed over together. Higher importance is kept.

Life cycle, once a prefill: :meth:`Method.patch_importance` on what the vision tower showed (the pruner packs its
result into visual tokens and carries it along), then at every pruning step :meth:`Method.reduce`, which by default
keeps the ``count`` tokens that :meth:`Method.score` ranks highest. A greedy method overrides :meth:`Method.select`;
a merging one overrides :meth:`Method.reduce`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from multimodal.errors import FlowpruneError, one_sentence
from multimodal.layout import Layout
from multimodal.observation import VisionObservation


@dataclass(frozen=True)
class SearchRange:
    """Where a search looks for a parameter; goes into the field's ``Annotated`` metadata.

    Args:
        low: least value.
        high: greatest value.
        log: whether its logarithm is searched.
        guesses: values that a search tries first, in every combination with those of other parameters.
    """

    low: float
    high: float
    log: bool = False
    guesses: tuple[float, ...] = ()


@dataclass(frozen=True)
class VisualTokens:
    """The prunable visual tokens still there at one pruning step, in a group of images that share a layout.

    Args:
        layer: the language-model layer the step comes before; 0 is before the language model.
        layout: the images' layout.
        index: which of the layout's patch tokens are still there ``[images, n]``, sorted.
        features: their embeddings (layer 0) or hidden states ``[images, n, C]``.
        importance: their importance map as left by the step before ``[images, n]``; None if the method has none.
    """

    layer: int
    layout: Layout
    index: Tensor
    features: Tensor
    importance: Tensor | None


class Reduced(NamedTuple):
    """What one pruning step leaves of every image.

    Args:
        kept: sorted indices into the step's tokens ``[images, count]``.
        merge: how tokens were merged, ``[images, n, C]`` → ``[images, count, C]``; the pruner applies it to everything
            they carry. None: not at all.
        importance: new importance ``[images, count]``; None: that they had.
        sizes: how many tokens each stands for ``[images, count]``; None: one.
    """

    kept: Tensor
    merge: Callable[[Tensor], Tensor] | None = None
    importance: Tensor | None = None
    sizes: Tensor | None = None


class Method(BaseModel):
    """A pruning method: parameters as fields, their search ranges as metadata, the rule as methods."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # JSON holds neither
    registry: ClassVar[dict[str, type["Method"]]] = {}

    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        cls.registry[cls.model_fields["name"].default] = cls

    @property
    def vision_layers(self) -> tuple[int, ...]:
        """Vision layers whose queries and keys it reads; −1 is the layer that feeds the projector."""
        return ()

    @property
    def needs_entropy(self) -> bool:
        """Whether it reads the entropy of the patches."""
        return False

    @property
    def biases_attention(self) -> float:
        """Weight w: a token that stands for n tokens gets w · log n added to its attention logit."""
        return 0.0

    @property
    def exact(self) -> bool:
        """Whether :meth:`reduce` always leaves exactly ``count`` tokens."""
        return True

    def fitted(self, layout: Layout, count: int) -> "Method":
        """The nearest parameters with which a step before the language model can leave ``count`` prunable tokens."""
        return self

    def patch_importance(self, vision: VisionObservation) -> Tensor | None:
        """The importance map over the patches of some views ``[views, patches]``, or None."""
        return None

    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of the tokens still there ``[images, n]``."""
        if tokens.importance is None:
            raise NotImplementedError(f"{type(self).__name__} implements neither patch_importance nor score")
        return tokens.importance

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """Exactly ``count`` sorted indices into the tokens ``[images, count]``; ties go to the earlier token."""
        order = self.score(tokens).argsort(dim=-1, descending=True, stable=True)
        return order[:, :count].sort(dim=-1).values

    def reduce(self, tokens: VisualTokens, count: int) -> Reduced:
        """Leave ``count`` tokens of each image."""
        return Reduced(self.select(tokens, count))


def method_named(name: object) -> type[Method]:
    """The method of that name.

    Raises:
        FlowpruneError: there is none; the message lists those there are.
    """
    if not isinstance(name, str) or name not in Method.registry:
        raise FlowpruneError(f"There is no method {name!r}: choose one of {', '.join(sorted(Method.registry))}.")
    return Method.registry[name]


def make_method(values: Mapping[str, Any]) -> Method:
    """A method from its name and parameters.

    Raises:
        FlowpruneError: there is no such method, or a parameter is unknown or out of bounds.
    """
    try:
        return method_named(values.get("name")).model_validate(dict(values))
    except ValidationError as error:
        raise FlowpruneError(one_sentence(error, "method.")) from error
