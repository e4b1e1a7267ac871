"""What was measured of one contender, sample by sample, and the file that keeps it: no model is needed to read it."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from multimodal import FlowpruneError, PruningConfig
from multimodal.errors import one_sentence
from multimodal.options import Measure
from pipelines.comparison.contenders import Variant
from search.digest import digest

FORMAT = 2  # of the files; part of their keys


class Identity(BaseModel):
    """What makes a measurement worth keeping: whoever has the same need not measure again.

    Args:
        method, variant, measure, budget: the contender; no budget for the unpruned model.
        model: name and digest of the model.
        data: digest of the held-out samples.
        device: where it was measured, with the timing's samples and repeats.
        config: how it prunes; None: not at all, or before the tower.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    variant: Variant
    measure: Measure
    budget: float | None
    model: str
    data: str
    device: str
    config: PruningConfig | None

    def path(self, folder: Path) -> Path:
        """The file that keeps its measurement."""
        budget = "" if self.budget is None else f"-{self.measure}-{self.budget:g}"
        key = digest({"format": FORMAT, **self.model_dump(mode="json")})
        return folder / f"{self.method}-{self.variant}{budget}-{key}.json"


class Measured(BaseModel):
    """One contender on the held-out samples, in their order.

    Args:
        identity: what was measured.
        study: the search that found its config, and the trials it had; None without one.
        retention, flops_share, kv_share: of the unpruned model's, over all samples; retention and KV bytes as the
            runtime counted them while it answered, every early layer and merged token among them.
        answers: greedy.
        right: what each is worth, in [0, 1]; None where no right one is known.
        agrees: whether each is the unpruned model's.
        discrepancies: 1 − cosine similarity of the last prompt token's last hidden state.
        divergences: of the next token's distribution from the unpruned one's, in nats.
        seconds, unpruned_seconds: to the first token, one prompt at a time, measured in turn.
        remark: what a reader must know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: Identity
    study: str | None = None
    trials: int | None = None
    retention: float
    flops_share: float
    kv_share: float
    answers: list[str]
    right: list[float | None]
    agrees: list[bool]
    discrepancies: list[float]
    divergences: list[float]
    seconds: float
    unpruned_seconds: float
    remark: str = ""

    def save(self, folder: Path) -> Path:
        """Write the file, so that a reader finds either all of it or nothing."""
        path = self.identity.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        own.replace(path)
        return path


def known(identity: Identity, folder: Path) -> Measured | None:
    """What was measured earlier of the same.

    Raises:
        FlowpruneError: the file is damaged.
    """
    path = identity.path(folder)
    if not path.exists():
        return None
    try:
        return Measured.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise FlowpruneError(f"{path} is damaged ({one_sentence(error)}): delete it.") from error
