"""What one thread's forward pass has shown on its way from the base model to the text model and its layers."""

import threading
from dataclasses import dataclass
from typing import Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from multimodal.runtime.outcome import Outcome
from multimodal.runtime.prompt import Prompt
from multimodal.runtime.reading import Reading
from multimodal.runtime.watch import Encoded, Modality


@dataclass
class Unlocated:
    """A prompt whose images the model may still be encoding."""

    encoded: dict[Modality, Encoded | None]  # None: what this forward encodes
    token_ids: NDArray[np.int64]
    valid: NDArray[np.bool_]
    blocks: Tensor | None


class Forward(threading.local):
    """What one thread's forward pass has shown on its way from the base model to the text model."""

    def __init__(self) -> None:
        self.encoded: dict[Modality, Encoded] = {}  # by the last encoding of each modality
        self.outputs: list[tuple[ref[Any], Encoded]] = []  # by the model's output, which may be handed in later
        self.last: Outcome | None = None
        self.has_read = False
        self.fed: Prompt | None = None
        self.reset()

    def reset(self) -> None:
        self.in_base = False
        self.mask: Tensor | None = None  # the padding mask that the base model was given
        self.unlocated: Unlocated | None = None
        self.reading: Reading | None = None
        self.cache: Any = None
        self.replayed: Any = None  # what a recording has computed in the text model's place
        self.looking_ahead = False
