"""Recordings that live as long as their owner keeps them, within a bound of memory."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
from torch import Tensor

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError, reason_of
from multimodal.families import Modules

if TYPE_CHECKING:
    from multimodal.recording.path import RecordedPath
    from multimodal.recording.tower import RecordedTower

MIB = 1 << 20
MET = 4096  # buckets whose sightings are remembered


class Recording(Protocol):
    """Something recorded."""

    @property
    def bytes(self) -> int:
        """Device memory that it holds."""


Kind = TypeVar("Kind", bound=Recording)


class Recordings:
    """What ``prune(model, config, recordings=Recordings())`` records, so that it is replayed without the host's work.

    The pruned prefill and the decoding step are recorded once for each bucket of prompts: batch size, image layouts,
    and text length rounded up. On CUDA a recording is a graph of all launches; elsewhere the computation is run again,
    which is no faster. Keep the object as long as the model: blocks that share it share what was recorded. What cannot
    be recorded goes the eager way, with one warning for each reason; a conversation that goes on, and beams, do so
    without.

    Until another prompt of its bucket is read, the keys and values of a cache are views of a recording's memory: copy
    what you take out of it.

    Args:
        limit_mib: of device memory that recordings may hold; the ones used longest ago are let go.
        text_multiple: what text lengths are rounded up to a multiple of: fewer recordings, or less padding.
        new_tokens: of an answer that caches have room for; what comes after them is read the eager way.
        sightings: how often a bucket is met until it is recorded; what is met less often is read the eager way.
        insist: whether what cannot be recorded is an error instead of a warning.

    Raises:
        FlowpruneError: a number is not positive.
    """

    def __init__(
        self,
        limit_mib: int = 4096,
        *,
        text_multiple: int = 32,
        new_tokens: int = 256,
        sightings: int = 1,
        insist: bool = False,
    ) -> None:
        numbers = {"limit_mib": limit_mib, "text_multiple": text_multiple}
        for name, value in (numbers | {"new_tokens": new_tokens, "sightings": sightings}).items():
            if value < 1:
                raise FlowpruneError(f"{name} is {value}: it must be at least 1.")
        self.limit_mib = limit_mib
        self.text_multiple = text_multiple
        self.new_tokens = new_tokens
        self.sightings = sightings
        self.insist = insist
        self.lock = threading.RLock()  # a recording serves one thread at a time
        self._made: OrderedDict[Hashable, Recording] = OrderedDict()
        self._refused: dict[Hashable, str] = {}  # why what was tried cannot be recorded
        self._met: OrderedDict[Hashable, int] = OrderedDict()  # how often what is not recorded yet was met
        self._told: set[str] = set()
        self._pool: object = None

    def __len__(self) -> int:
        return len(self._made)

    def __repr__(self) -> str:
        return f"Recordings({len(self)} held, {self.bytes / MIB:.0f} of {self.limit_mib} MiB)"

    @property
    def bytes(self) -> int:
        """Device memory that all of them hold."""
        return sum(each.bytes for each in self._made.values())

    def path(self, modules: Modules, config: PruningConfig, read: Callable[..., Tensor]) -> "RecordedPath":
        """What reads a model's prompts and tokens by these recordings (:class:`RecordedPath`)."""
        from multimodal.recording.path import RecordedPath  # needs the runtime, which needs this file

        return RecordedPath(self, modules, config, read)

    def tower(self, modules: Modules, known: Hashable) -> "RecordedTower":
        """What encodes a model's images by these recordings (:class:`RecordedTower`)."""
        from multimodal.recording.tower import RecordedTower

        return RecordedTower(self, modules, known)

    def pool(self, device: torch.device) -> object:
        """Of memory, which all recordings share; None where there is none to share."""
        if device.type == "cuda" and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def find(self, key: Hashable) -> Recording | None:
        """What was recorded under a key."""
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def record(self, key: Hashable, make: Callable[[], Kind], alike: Hashable = None) -> Kind | None:
        """Record something under a key; None: not yet, or it cannot be, which was told.

        Args:
            key: which nothing is recorded under.
            make: records it.
            alike: equal for keys of which none can be recorded where one cannot; None: the key.

        Raises:
            FlowpruneError: it cannot be, and ``insist`` is set.
        """
        alike, large = key if alike is None else alike, (key, self.limit_mib)
        if (reason := self._refused.get(alike) or self._refused.get(large)) is not None:
            self.decline(reason)
            return None
        if not self._often(key):
            return None
        try:
            made = make()
        except torch.OutOfMemoryError:
            self.decline("the device has no memory left for a recording: lower limit_mib, or batch less")
            return None
        except RuntimeError as error:
            self._refused[alike] = f"it cannot be recorded ({reason_of(error)})"
            self.decline(self._refused[alike])
            return None
        if made.bytes > self.limit_mib * MIB:
            size = f"{-(-made.bytes // MIB)} MiB, more than limit_mib={self.limit_mib}"
            self._refused[large] = f"one recording takes {size}: raise it"
            self.decline(self._refused[large])
            return None
        self._made[key] = made
        self.settle()
        return made

    def _often(self, key: Hashable) -> bool:
        """Whether what is not recorded yet is met often enough now."""
        met = self._met.pop(key, 0) + 1
        if met < self.sightings:
            self._met[key] = met
            while len(self._met) > MET:
                self._met.popitem(last=False)
        return met >= self.sightings

    def settle(self) -> None:
        """Let go of what was used longest ago, until the rest keeps within the limit."""
        while self._made and self.bytes > self.limit_mib * MIB:
            self._made.popitem(last=False)

    def clear(self) -> None:
        """Let go of all."""
        with self.lock:
            self._made.clear()

    def decline(self, reason: str) -> None:
        """Say that something is not recorded, once for each reason.

        Raises:
            FlowpruneError: ``insist`` is set.
        """
        if self.insist:
            raise FlowpruneError(f"This cannot be recorded: {reason}.")
        self.tell(f"Not recorded, read the eager way: {reason}.")

    def tell(self, sentence: str) -> None:
        """Warn with a sentence, once."""
        if sentence not in self._told:
            self._told.add(sentence)
            warnings.warn(sentence, stacklevel=2)
