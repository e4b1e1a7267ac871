"""The model a run works on, opened once a process."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin

from multimodal import FlowpruneError, load_model
from multimodal.benchmark.models import random_model
from multimodal.config import TunedModel
from multimodal.families import Modules, modules_of
from multimodal.runtime.watch import Normalization
from pipelines.settings import ModelSettings
from search.digest import digest

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"}
WEIGHTS_BESIDE = (".index.json", "adapter_config.json")  # which say what of the weights is used
OF_A_CALL = ("padding", "truncation")  # which a tokenizer keeps of its last call


@dataclass(frozen=True)
class OpenedModel:
    """A model, its processor, and what identifies it."""

    model: PreTrainedModel
    processor: ProcessorMixin
    modules: Modules
    tuned_for: TunedModel
    adapter: str | None = None

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation that the image processor normalises with."""
        images = self.processor.image_processor
        return tuple(images.image_mean), tuple(images.image_std)

    @property
    def identity(self) -> str:
        """A digest of all that changes what the model sees and says, for caches."""
        folders = [Path(name) for name in (self.model.config._name_or_path, self.adapter) if name]
        files = (file for folder in folders for file in folder.glob("*"))
        weights = (file for file in files if file.suffix in WEIGHTS or file.name.endswith(WEIGHTS_BESIDE))
        generation = getattr(self.model, "generation_config", None)
        return digest(
            {
                "model": self.tuned_for.model_dump(),
                "adapter": self.adapter,
                "config": self.model.config.to_json_string(),
                "generation": None if generation is None else generation.to_json_string(),
                "files": sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights),
                "dtype": str(self.model.dtype),
                "processing": self.processing,
                "transformers": transformers.__version__,
            }
        )

    @property
    def processing(self) -> str:
        """A digest of what makes inputs of pictures and texts: the processor's settings, tokenizer and template."""
        tokenizer = self.processor.tokenizer
        fast = getattr(tokenizer, "backend_tokenizer", None)
        words = json.loads(fast.to_str()) if fast is not None else {"vocabulary": tokenizer.get_vocab()}
        return digest(
            {
                "processor": self.processor.to_json_string(),
                "tokenizer": {name: own for name, own in words.items() if name not in OF_A_CALL},
                "special": tokenizer.special_tokens_map,
                "template": getattr(self.processor, "chat_template", None),
            }
        )


def open_model(settings: ModelSettings) -> OpenedModel:
    """Load the model of the settings; a second call returns the same.

    Raises:
        FlowpruneError: it cannot be loaded, or has random weights, which cannot answer.
    """
    if settings.weights == "random":
        raise FlowpruneError("model.weights is random, which only the benchmark stage can use: set it to pretrained.")
    key = settings.model_dump_json()
    if key not in _opened:
        _opened[key] = _open(settings)
    return _opened[key]


_opened: dict[str, OpenedModel] = {}


def _open(settings: ModelSettings) -> OpenedModel:
    model, processor = load_model(
        settings.path,
        revision=settings.revision,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        quantization=settings.quantization,
        adapter=settings.adapter,
        attention=settings.attention,
        trust_remote_code=settings.trust_remote_code,
    )
    modules = modules_of(model)
    tuned_for = TunedModel(
        id=settings.path,
        revision=getattr(model.config, "_commit_hash", None) or settings.revision,
        architecture=type(model).__name__,
        layers=len(modules.text_layers),
    )
    return OpenedModel(model, processor, modules, tuned_for, settings.adapter)


def build_random(settings: ModelSettings) -> PreTrainedModel:
    """A model of the settings' architecture with random weights: speed needs no checkpoint.

    Raises:
        FlowpruneError: no architecture is named, or it is not supported.
    """
    if settings.architecture is None or "model_type" not in settings.architecture:
        raise FlowpruneError(f"model {settings.name} names no architecture: set model.architecture.model_type.")
    dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    return random_model(settings.architecture, settings.device, dtype, settings.attention)
