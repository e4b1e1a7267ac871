"""The exported pruning config: what to prune, how, and where the numbers came from. Plain JSON, validated."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from multimodal.adaptive import Adaptive
from multimodal.errors import FlowpruneError, one_sentence
from multimodal.evidence import Request, Statistic, VisionRequest
from multimodal.merging import MergingRule, make_merging
from multimodal.methods import Method, VisualTokens, make_method
from multimodal.options import FILE_NAME, Measure, Positions, Sinks
from multimodal.selection import Selection

SCHEMA_VERSION = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # JSON holds neither


class PruningStep(_Strict):
    """One step of the schedule.

    Args:
        layer: the language-model layer it comes before; 0 is before the language model.
        keep_ratio: share of the visual tokens *that are left* which it keeps, in (0, 1].
    """

    layer: int = Field(ge=0)
    keep_ratio: float = Field(gt=0, le=1)


class TunedModel(_Strict):
    """The model that a config was tuned for."""

    id: str
    revision: str | None = None
    architecture: str
    layers: int


class Budget(_Strict):
    """What was asked for and what the config meets over the calibration samples.

    Args:
        measure: ``retention``, prefill ``flops`` or ``kv`` bytes, as shares of the unpruned model's, text included in
            the latter two; or ``latency_ms``, milliseconds of the language model's prefill of one prompt, as the
            study's latency model predicts them for the device it was measured on.
        asked, met: in that measure.
    """

    measure: Measure = "retention"
    asked: float = Field(gt=0)
    met: float = Field(gt=0)

    @model_validator(mode="after")
    def _shares_are_shares(self) -> "Budget":
        for name in ("asked", "met"):
            if self.measure != "latency_ms" and getattr(self, name) > 1:
                raise FlowpruneError(f"budget.{name} is {getattr(self, name):g}: a share must be in (0, 1].")
        return self


class Provenance(_Strict):
    """Where a config comes from.

    Args:
        study, trial: the search, and which of its trials.
        study_id: which of all studies of that name, wherever they are stored.
        calibration_discrepancy: what the search minimised, mean over the calibration samples.
        objective: what that is: ``discrepancy``, or ``kl`` of the next token's distribution.
        heldout_discrepancy, heldout_digest: on samples that the search never saw, and their digest.
        data_digest: of the calibration samples.
        versions: of packages.
    """

    study: str
    study_id: str | None = None
    trial: int
    calibration_discrepancy: float
    objective: Literal["discrepancy", "kl"] = "discrepancy"
    heldout_discrepancy: float | None = None
    heldout_digest: str | None = None
    data_digest: str
    versions: dict[str, str] = Field(default_factory=dict)


def _method(value: Any) -> Any:
    return make_method(value) if isinstance(value, dict) else value


def _merging(value: Any) -> Any:
    return make_merging(value) if isinstance(value, dict) else value


class PruningConfig(_Strict):
    """A complete, self-contained description of how to prune one model.

    Args:
        method: the method and its parameters.
        schedule: pruning steps, layers strictly increasing, at least one.
        positions: ``compact`` re-numbers the tokens left after the step at layer 0; ``original`` keeps each token's
            own position. Inner steps always keep them.
        merging: a merging rule that takes the place of the method's own; None: the method's own.
        adaptive: how keep ratios follow the image; None: every image keeps the same share.
        sinks: what becomes of attention sinks of the vision tower in whatever statistic of its attention the method
            reads: ``kept``, ``masked`` or ``calibrated`` (:class:`multimodal.evidence.Statistic`).
        image_mean, image_std: of the model's image processor; needed only by methods that look at pixels.
        model, budget, provenance: what the config was tuned for, under, and by; None when written by hand.
    """

    schema_version: Literal[1] = 1
    method: Annotated[SerializeAsAny[Method], BeforeValidator(_method)]
    schedule: tuple[PruningStep, ...] = Field(min_length=1)
    positions: Positions = "original"
    merging: Annotated[SerializeAsAny[MergingRule], BeforeValidator(_merging)] | None = None
    sinks: Sinks = "kept"
    adaptive: Adaptive | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    model: TunedModel | None = None
    budget: Budget | None = None
    provenance: Provenance | None = None

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise FlowpruneError(one_sentence(error)) from error

    @model_validator(mode="after")
    def _layers_increase(self) -> "PruningConfig":
        layers = [step.layer for step in self.schedule]
        if layers != sorted(set(layers)):
            raise FlowpruneError(f"schedule has the layers {layers}: they must be strictly increasing.")
        return self

    @model_validator(mode="after")
    def _merging_fits(self) -> "PruningConfig":
        if self.merging is not None and self.merging.needs_score and not self.method.scores:
            raise FlowpruneError(
                f"merging.rule {self.merging.rule!r} ranks tokens by their score, and {self.method.name} has none: "
                "choose nearest or clusters."
            )
        return self

    def seen_as(self, request: Request) -> Request:
        """What is answered where the method asks for something."""
        return replace(request, sinks=self.sinks) if isinstance(request, Statistic) else request

    @property
    def vision_requests(self) -> list[VisionRequest]:
        """What of the method's evidence the vision tower answers."""
        return [each for own in self.method.evidence if isinstance(each := self.seen_as(own), VisionRequest)]

    def reduce(self, tokens: VisualTokens, count: int) -> Selection:
        """What a step leaves of each image: the method's choice, merged by the config's rule or by its own."""
        own = self.merging
        return self.method.reduce(tokens, count) if own is None else own.reduce(self.method, tokens, count)

    @property
    def merged_weight(self) -> float:
        """Weight w: a token that stands for n tokens gets w · log n added to its attention logit."""
        return self.method.merged_weight if self.merging is None else self.merging.weight

    @property
    def exact(self) -> bool:
        """Whether every step leaves exactly the tokens that were planned."""
        return self.merging is not None or self.method.exact

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the image processor; None if either is unknown."""
        return None if self.image_mean is None or self.image_std is None else (self.image_mean, self.image_std)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "PruningConfig":
        """Load from a file, a folder that holds a ``pruning.json``, or a hub id.

        Raises:
            FlowpruneError: nothing there, or not a valid config; one sentence that names the field and the fix.
        """
        path = _locate(source)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FlowpruneError(f"{path} is not a readable JSON file ({error}): export it again.") from error
        if not isinstance(data, dict):
            raise FlowpruneError(f"{path} holds no JSON object: export it again.")
        version = data.get("schema_version", SCHEMA_VERSION)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise FlowpruneError(
                f"{path} has schema_version {version}, newer than {SCHEMA_VERSION}: upgrade flowprune to read it."
            )
        try:
            return cls(**data)
        except FlowpruneError as error:
            raise FlowpruneError(f"{path}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``pruning.json`` into a folder, beside the model if you like; returns its path."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.is_dir():
        path = path / FILE_NAME
    if path.is_file():
        return path
    if path.suffix == ".json" or path.is_absolute() or str(source).count("/") != 1 or path.parent.exists():
        raise FlowpruneError(f"{path} does not exist: give a {FILE_NAME}, a folder that holds one, or a hub id.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(source), FILE_NAME))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlowpruneError(f"No {FILE_NAME} for {source!r} here or on the hub ({reason}).") from error
