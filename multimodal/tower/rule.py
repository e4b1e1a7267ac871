"""The contract of a rule that prunes inside the vision tower.

Patches that leave are seen by no later layer of the tower. Behind the layer that feeds the projector they stand again
where they stood, with the features that they left with, so that mergers, pooling and layouts stay as they are; a step
before the language model then prunes them, by a score that the rule gives.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from multimodal.evidence.tower import LayerAttention


@dataclass(frozen=True)
class TowerLayer:
    """What one layer of the tower has done with the patches that were there, all views of one encoding together.

    Args:
        number: of the layer, from 0.
        layers: up to the one that feeds the projector, itself included.
        patches: of a view, unpruned.
        target: patches that should be left of a view in the end.
        class_tokens: leading tokens that are no patch; they never leave.
        before: hidden states that it was given ``[views, class tokens + n, C]``.
        after: those that it made ``[views, class tokens + n, C]``.
        attention: what it compared.
        score: what the layer before left :attr:`TowerRule` with ``[views, n]``; None at the first.
    """

    number: int
    layers: int
    patches: int
    target: int
    class_tokens: int
    before: Tensor
    after: Tensor
    attention: LayerAttention
    score: Tensor | None

    @property
    def left(self) -> int:
        """Patches of a view that are there."""
        return self.after.shape[1] - self.class_tokens

    @property
    def remaining(self) -> int:
        """Layers from this one to the one that feeds the projector, itself included."""
        return self.layers - self.number


class TowerRule(ABC):
    """How many patches leave behind which layer, and which. Counts depend on counts alone."""

    @abstractmethod
    def leaving(self, number: int, layers: int, left: int, target: int) -> int:
        """How many patches of a view leave behind a layer.

        Args:
            number, layers, target: as in :class:`TowerLayer`.
            left: patches of a view that are there.
        """

    @abstractmethod
    def score(self, layer: TowerLayer) -> Tensor:
        """Importance of the patches that are there ``[views, n]``, float32, not negative; the lowest leave."""

    def restored(self, states: Tensor, frozen: Tensor, stays: Tensor) -> Tensor:
        """All patches of a view behind the tower, once some have left.

        Args:
            states: what each has become, those that left as they left ``[views, patches, C]``.
            frozen: what each was when the first ones left ``[views, patches, C]``.
            stays: True at those that are still there ``[views, patches]``.
        """
        return states
