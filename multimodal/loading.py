"""Load a vision-language model and its processor: the shipped one, a local path, or a hub id."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from multimodal.checkpoint import add_adapter, read_weights
from multimodal.errors import FlowpruneError
from multimodal.families import check_supported

SHIPPED = {name: Path(__file__).parent / name for name in ("tiny", "dino")}
GIVE = "give 'tiny', 'dino', a local folder or a hub id."
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's ways

Quantization = Literal["bnb-4bit", "bnb-8bit"]
T = TypeVar("T")


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | None = None,
    quantization: Quantization | None = None,
    adapter: str | Path | None = None,
    attention: str = "sdpa",
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model for inference and its processor. Weights are read from safetensors alone, never from pickles.

    Args:
        model: ``tiny`` or ``dino`` (shipped), a local folder, or a hub id of a supported family.
        revision: of the hub repository.
        dtype: ``auto`` (the checkpoint's; float32 on a CPU), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (CUDA if there is one), or a torch device.
        device_map: how ``accelerate`` spreads the layers over devices, for example ``auto``; None: all on ``device``.
        quantization: ``bnb-4bit`` or ``bnb-8bit`` (bitsandbytes); None: as the checkpoint says.
        adapter: a folder or hub id of a PEFT adapter, which is added to the model.
        attention: ``eager``, ``sdpa`` or ``flash_attention_2``.
        trust_remote_code: run code from the repository; off unless you ask.

    Raises:
        FlowpruneError: nothing there, weights are broken or not this model's, the family is not supported, there is no
            such device, dtype or attention, or a library that this needs is not installed.
    """
    where = located(model)
    place = chosen_device(device)
    if isinstance(device_map, str) and device_map not in SPREADS:
        chosen_device(device_map, "device_map")
    check_attention(attention)
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype):
        raise FlowpruneError(f"The dtype {dtype!r} is none of torch: give auto, float32, bfloat16 or float16.")
    if not Path(where).exists() and (where.startswith(("/", ".")) or where.count("/") > 1):
        raise FlowpruneError(f"The model {where} does not exist: {GIVE}")
    for needed, wanted in (("accelerate", device_map), ("bitsandbytes", quantization), ("peft", adapter)):
        if wanted is not None and not _is_installed(needed):
            raise FlowpruneError(f"The model asks for {wanted}, which needs {needed}: pip install {needed}.")
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _reading(where, lambda: AutoConfig.from_pretrained(where, **common))
    check_supported(config.model_type)
    processor = _reading(where, lambda: AutoProcessor.from_pretrained(where, **common))
    processor.tokenizer.padding_side = "left"
    if dtype == "auto" and place.type == "cpu":
        dtype = "float32"
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention, **common}
    if device_map is not None or quantization is not None:
        options["device_map"] = device_map or {"": place}
    if quantization is not None:
        four = quantization == "bnb-4bit"
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four)
    loaded = _reading(where, lambda: read_weights(where, config, **options))
    if adapter is not None:
        own = str(Path(adapter).expanduser())
        _reading(own, lambda: add_adapter(loaded, own), "adapter", "give the folder or hub id of a PEFT adapter.")
    if "device_map" not in options:
        loaded.to(place)  # type: ignore[arg-type]
    return loaded.eval(), processor


def located(model: str | Path) -> str:
    """The folder of a model that ships or was named, or a hub id."""
    return str(SHIPPED.get(str(model), Path(model).expanduser() if str(model).startswith("~") else model))


def check_attention(attention: str) -> None:
    """Refuse a name of attention that transformers does not know; one with a slash is a kernel's on the hub.

    Raises:
        FlowpruneError: it is none.
    """
    known = {"eager", *AttentionInterface().valid_keys()}
    if attention.removeprefix("paged|") not in known and "/" not in attention:
        raise FlowpruneError(
            f"The attention {attention!r} is none of transformers': give eager, sdpa or flash_attention_2."
        )


def chosen_device(device: str, setting: str = "device") -> torch.device:
    """A torch device; ``auto`` is CUDA if there is one.

    Args:
        device: its name.
        setting: that gives it.

    Raises:
        FlowpruneError: there is no such device here.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise FlowpruneError(
            f"The device {device!r} is not here ({_first_line(error)}): set {setting} to auto, cpu, or one that is."
        ) from error


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _reading(where: str, read: Callable[[], T], what: str = "model", give: str = GIVE) -> T:
    try:
        return read()
    except FlowpruneError:
        raise
    except ImportError as error:
        raise FlowpruneError(f"{where} needs more than is installed ({_first_line(error)}): install that.") from error
    except Exception as error:  # a broken file breaks whatever of transformers reads it
        raise FlowpruneError(f"No {what} could be read from {where!r} ({_first_line(error)}): {give}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
