"""What ``vllm serve`` must be told to read pruned images."""

import json
from typing import Any

from transformers import PretrainedConfig

from multimodal.errors import FlowpruneError
from multimodal.families import geometry_of
from multimodal.serving.vllm_plugin import MODELS, PREFIX

TOWERS = ("clip_vision_model", "siglip_vision_model", "pixtral")  # of LLaVA's families, that vLLM 0.32 has


def vllm_arguments(config: PretrainedConfig) -> list[str]:
    """The arguments.

    Args:
        config: of the model.

    Raises:
        FlowpruneError: the plugin has no such model, vLLM has not its tower, or its rotary embedding is scaled in a way
            that vLLM cannot join with several axes.
    """
    return ["--enable-mm-embeds", "--hf-overrides", json.dumps(hf_overrides(config))]


def hf_overrides(config: PretrainedConfig) -> dict[str, Any]:
    """What of the model's config makes vLLM load our model of it, with positions on three axes.

    Raises:
        FlowpruneError: as :func:`vllm_arguments`.
    """
    architecture = (config.architectures or ["an unnamed architecture"])[0]
    if architecture not in MODELS:
        raise FlowpruneError(
            f"{architecture} has no model in the vLLM plugin, which knows {', '.join(MODELS)}: serve it with "
            "engine=transformers."
        )
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if MODELS[architecture].startswith("Llava") and tower not in TOWERS:
        raise FlowpruneError(
            f"vLLM has no {tower} tower for {architecture}: serve it with engine=transformers, or take a model with "
            "a tower of CLIP or SigLIP."
        )
    overrides: dict[str, Any] = {"architectures": [PREFIX + architecture]}
    if geometry_of(config).rotary_axes == 1:
        text: Any = config.get_text_config()
        rope = dict(text.rope_parameters)
        if rope.get("rope_type", "default") != "default":
            raise FlowpruneError(
                f"The rotary embedding of {architecture} is scaled ({rope['rope_type']}), which vLLM cannot join with "
                "positions of pruned tokens: serve it with engine=transformers."
            )
        half = (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) // 2
        third = half // 3
        overrides["text_config"] = {"rope_parameters": rope | {"mrope_section": [half - 2 * third, third, third]}}
    return overrides
