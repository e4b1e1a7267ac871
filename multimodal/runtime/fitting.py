"""Whether a config fits a model: checked before anything is touched or computed."""

from multimodal.config import PruningConfig
from multimodal.costs import sliding_window
from multimodal.errors import FlowpruneError
from multimodal.families import Modules


def check_fits(modules: Modules, config: PruningConfig) -> None:
    """Refuse a config that the model cannot follow.

    Raises:
        FlowpruneError: one sentence that names the field and the fix.
    """
    geometry, method = modules.geometry, config.method
    architecture, layers = type(modules.model).__name__, len(modules.text_layers)
    if config.model is not None and config.model.architecture != architecture:
        raise FlowpruneError(
            f"model.architecture is {config.model.architecture}, but the model is a {architecture}: "
            "search a config for this model."
        )
    for number, step in enumerate(config.schedule):
        if step.layer >= layers:
            raise FlowpruneError(
                f"schedule.{number}.layer is {step.layer}, but the model has {layers} layers: "
                f"choose one of 0 to {layers - 1}."
            )
        if step.layer < method.first_layer:
            raise FlowpruneError(
                f"schedule.{number}.layer is {step.layer}, but {method.name} reads layers of the language model "
                f"around its step: choose one of {method.first_layer} to {layers - 1}."
            )
        if 0 < step.layer < geometry.deepstack_layers:
            raise FlowpruneError(
                f"schedule.{number}.layer is {step.layer}, but the model adds visual features again up to its layer "
                f"{geometry.deepstack_layers}: choose 0, or one of {geometry.deepstack_layers} to {layers - 1}."
            )
    if config.positions not in geometry.positions:
        raise FlowpruneError("positions 'compact' does not fit several rotary axes: set positions to 'original'.")
    if method.tower is not None:
        _ = geometry.view_patches  # refuses towers that patches cannot leave
    requests = config.vision_requests
    for request in requests:
        for layer in (*request.attention_layers, *request.feature_layers):
            geometry.vision_layer(layer)
    if any(request.reads_pixels for request in requests) and config.normalization is None:
        raise FlowpruneError(
            "image_mean and image_std are missing, which entropy needs: take them from processor.image_processor."
        )
    backend = modules.text_model.config._attn_implementation
    if backend == "flex_attention":  # torch 2.14 on a CPU corrupts its memory
        raise FlowpruneError(
            "flex_attention does not take the masks of pruned prompts: load the model with attn_implementation='sdpa'."
        )
    if config.merged_weight and "flash" in backend:
        raise FlowpruneError(
            f"The weight of merged tokens needs an additive mask, which {backend} does not take: "
            "set it to 0, or load the model with attn_implementation='sdpa'."
        )
    slides = any(sliding_window(modules.text_model.config, layer) is not None for layer in range(layers))
    if "flash" in backend and (slides or geometry.bidirectional):
        raise FlowpruneError(
            f"{backend} takes no mask for sliding windows of pruned tokens or for image tokens that attend both ways: "
            "load the model with attn_implementation='sdpa'."
        )
