"""The contract between a pruning method and the runtime.

A method is a pydantic model of its parameters, the evidence it declares, and one rule. It never sees the model, and
knows nothing of counts over layers, gathering, positions, masks or caches. Every tensor has a leading dimension of
images: images of one layout are handed over together. Higher scores are kept.

Life cycle, at every pruning step: :meth:`Method.reduce`, which by default keeps the ``count`` tokens that
:meth:`Method.score` ranks highest and merges nothing. A greedy method overrides :meth:`Method.select`; one whose paper
merges overrides :meth:`Method.reduce`. A config's own merging rule (:mod:`multimodal.merging`) takes its place.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from multimodal.errors import FlowpruneError, one_sentence
from multimodal.evidence import Request, VisionRequest
from multimodal.layout import Layout
from multimodal.ranking import highest
from multimodal.selection import Selection
from multimodal.tower import TowerRule


class VisualTokens:
    """The prunable visual tokens still there at one pruning step, in a group of images that share a layout.

    Args:
        layer: the language-model layer the step comes before; 0 is before the language model.
        layout: the images' layout.
        index: which of the layout's patch tokens are still there ``[images, n]``, sorted.
        read_features: makes :attr:`features`.
        read_evidence: answers a request that the method declared, for these tokens.
    """

    def __init__(
        self,
        layer: int,
        layout: Layout,
        index: Tensor,
        read_features: Callable[[], Tensor],
        read_evidence: Callable[[Request], Tensor],
    ) -> None:
        self.layer = layer
        self.layout = layout
        self.index = index
        self._read_features = read_features
        self.evidence = read_evidence

    @cached_property
    def features(self) -> Tensor:
        """Their embeddings (layer 0) or hidden states ``[images, n, C]``."""
        return self._read_features()


class Method(BaseModel):
    """A pruning method: parameters as fields, their search ranges as metadata, the rule as methods."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # JSON holds neither
    registry: ClassVar[dict[str, type["Method"]]] = {}
    #: first language-model layer that a step may come before: 1 for one that reads layers of the language model
    first_layer: ClassVar[int] = 0
    #: the parameter that gives :attr:`merged_weight`, which engines without additive masks need at 0
    weight_parameter: ClassVar[str | None] = None

    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        name = cls.model_fields["name"].default
        other = cls.registry.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise FlowpruneError(
                f"There are two methods {name!r}, {other.__module__}.{other.__qualname__} and "
                f"{cls.__module__}.{cls.__qualname__}: give one another name."
            )
        cls.registry[name] = cls

    @property
    def evidence(self) -> Sequence[Request]:
        """What it looks at."""
        return ()

    @property
    def vision_requests(self) -> list[VisionRequest]:
        """What of its evidence the vision tower answers."""
        return [request for request in self.evidence if isinstance(request, VisionRequest)]

    @property
    def tower(self) -> TowerRule | None:
        """How it prunes inside the vision tower; None: not at all."""
        return None

    @property
    def merged_weight(self) -> float:
        """Weight w: a token that stands for n tokens gets w · log n added to its attention logit."""
        return 0.0

    @property
    def scores(self) -> bool:
        """Whether it ranks tokens by a score; greedy methods have none."""
        return type(self).score is not Method.score

    @property
    def exact(self) -> bool:
        """Whether :meth:`reduce` always leaves exactly ``count`` tokens."""
        return True

    def score(self, tokens: VisualTokens) -> Tensor:
        """Importance of the tokens still there ``[images, n]``; a method that overrides :meth:`select` needs none."""
        raise NotImplementedError(f"{type(self).__name__} implements neither score nor select")

    def select(self, tokens: VisualTokens, count: int) -> Tensor:
        """Exactly ``count`` sorted indices into the tokens ``[images, count]``; ties go to the earlier token."""
        return highest(self.score(tokens), count)

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        """Leave ``count`` tokens of each image."""
        return Selection(self.select(tokens, count))


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
