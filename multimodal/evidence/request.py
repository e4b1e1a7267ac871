"""What a request is: a frozen value that a method declares, and by which it is given the answer.

Vision requests are answered by what the tower shows of each view, live or from a calibration cache; the answers are
packed into visual tokens by the model's own packing code. Language requests are answered at a pruning step, by the
language model that runs, also in a search.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from multimodal.evidence.tower import TowerViews

Stored = Mapping[str, Tensor]  # leading dimension: views


class Request:
    """Anything that a method may declare; hashable."""


class LanguageRequest(Request):
    """Answered at a pruning step by the language model."""


class VisionRequest(Request, ABC):
    """Answered by what the vision tower shows of each view.

    A search declares requests that answer others, too: one table for every threshold, say.
    """

    kinds: ClassVar[dict[str, type["VisionRequest"]]] = {}

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.__name__] = cls

    @property
    def attention_layers(self) -> tuple[float, ...]:
        """Vision layers whose queries, keys and values it reads: −1 is the layer that feeds the projector; a number in
        (0, 1) names the layer that this share of those before the projector comes before."""
        return ()

    @property
    def feature_layers(self) -> tuple[float, ...]:
        """Vision layers whose output it reads, counted in the same way."""
        return ()

    @property
    def reads_pixels(self) -> bool:
        """Whether it reads the pixels of the patches, un-normalised."""
        return False

    @abstractmethod
    def collect(self, seen: "TowerViews") -> Stored:
        """What of the tower answers it, tensors with a leading dimension of views."""

    @abstractmethod
    def answer(self, stored: Stored, collected: "VisionRequest") -> Tensor:
        """The answer by patch ``[views, patches]`` or ``[views, patches, C]``.

        Args:
            stored: what :meth:`collect` of ``collected`` gave.
            collected: this request, or one that :meth:`covers` it.
        """

    def covers(self, other: Request) -> bool:
        """Whether what this one collects answers the other, too."""
        return self == other

    def joined(self, other: "VisionRequest") -> "VisionRequest | None":
        """One request that covers both; None if two must be collected."""
        return self if self.covers(other) else other if other.covers(self) else None


def joined(requests: Iterable[VisionRequest]) -> list[VisionRequest]:
    """The fewest requests that answer all of these."""
    found: list[VisionRequest] = []
    for request in requests:
        for number, other in enumerate(found):
            if (both := other.joined(request)) is not None:
                found[number] = both
                break
        else:
            found.append(request)
    return found
