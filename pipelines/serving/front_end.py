"""The model of ``engine=vllm``: its tower and projector on the device, its language model nowhere."""

from torch import nn

from multimodal.families import Modules
from multimodal.loading import chosen_device
from pipelines.model import OpenedModel, open_model
from pipelines.settings import ModelSettings


def open_front_end(settings: ModelSettings) -> OpenedModel:
    """Load a model without what only the engine needs.

    Raises:
        FlowpruneError: it cannot be loaded.
    """
    opened = open_model(settings.model_copy(update={"device": "cpu", "device_map": None}))
    keep_front_end(opened.modules)
    device = chosen_device(settings.device)
    for tensor in [*opened.model.parameters(), *opened.model.buffers()]:
        if not tensor.is_meta:
            tensor.data = tensor.data.to(device)
    return opened


def keep_front_end(modules: Modules) -> None:
    """Let the language model's layers go; their places stay."""
    for layer in modules.text_layers:
        layer.to("meta")
    head = modules.model.get_output_embeddings()
    words = modules.model.get_input_embeddings()
    if isinstance(head, nn.Module) and head.weight is not words.weight:
        head.to("meta")
