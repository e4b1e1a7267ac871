"""What ``--model_args`` may say."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multimodal.errors import FlowpruneError, one_sentence
from multimodal.loading import Quantization


class Arguments(BaseModel):
    """The model, how it is loaded, and how it is pruned.

    Args:
        pretrained: ``tiny`` or ``dino`` (shipped), a local folder, or a hub id.
        config: a ``pruning.json``, a folder that holds one, or a hub id; None: the model is not pruned.
        batch_size: samples that are answered together.
        max_num_frames: of a video, at most; evenly apart.
        revision, dtype, device, device_map, quantization, adapter, attention, trust_remote_code: as in
            :func:`multimodal.loading.load_model`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pretrained: str
    config: str | None = None
    batch_size: int = Field(default=1, ge=1)
    max_num_frames: int = Field(default=32, ge=1)
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    quantization: Quantization | None = None
    adapter: str | None = None
    attention: str = "sdpa"
    trust_remote_code: bool = False

    def __init__(self, /, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise FlowpruneError(one_sentence(error, "model_args.")) from error


def written(text: str) -> dict[str, str]:
    """Names and values of ``name=value,name=value``, as they are written: a folder may be named 0.10.

    Raises:
        FlowpruneError: something in it is no name with a value.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if "=" not in part:
            raise FlowpruneError(
                f"model_args holds {part!r}, which has no value: write name=value, with commas between."
            )
    return dict(part.split("=", 1) for part in parts)


def from_command_line(text: str, options: Mapping[str, Any]) -> Arguments:
    """The arguments of a command.

    Args:
        text: what ``--model_args`` says.
        options: lmms-eval's own, as ``--batch_size``, which it also gives where nobody asked; ``text`` goes first.

    Raises:
        FlowpruneError: an argument is unknown, missing or wrong.
    """
    return Arguments(**{name: value for name, value in options.items() if value is not None} | written(text))
