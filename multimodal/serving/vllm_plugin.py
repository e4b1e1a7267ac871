"""The plugin that vLLM loads (entry point ``vllm.general_plugins``): models whose pruned images keep their positions.

Nothing of vLLM's is replaced: the models have names of their own, which ``--hf-overrides`` asks for
(:func:`multimodal.serving.vllm_arguments.vllm_arguments`).
"""

PREFIX = "Flowprune"
MODELS = {
    "LlavaForConditionalGeneration": "Llava",
    "LlavaNextForConditionalGeneration": "LlavaNext",
    "LlavaOnevisionForConditionalGeneration": "LlavaOnevision",
    "Qwen2VLForConditionalGeneration": "Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5VL",
}  # architecture: its class in multimodal.serving.vllm_models


def register() -> None:
    """Tell vLLM of the models, in each of its processes."""
    from vllm import ModelRegistry

    for architecture, name in MODELS.items():
        ModelRegistry.register_model(PREFIX + architecture, f"multimodal.serving.vllm_models:{name}")
