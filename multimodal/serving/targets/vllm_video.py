"""vLLM's own pruning of videos: EVS or VidCom2 at the retention of a config.

Of vLLM 0.32 (vllm/config/multimodal.py, read there): ``--video-pruning-rate`` is the share of each video's tokens to
prune, in [0, 1); ``--video-pruning-method`` is ``evs`` (arXiv 2510.14624, which keeps the first frame whole) or
``vidcom2``. Pictures are not pruned. Guide: https://docs.vllm.ai/projects/recipes/en/stable/NVIDIA/Nemotron-Nano-12B-v2-VL.html
"""

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.serving.limits import one_step_ratio
from multimodal.serving.targets.target import EngineArguments, allowed_ratio, rounded_up

METHODS = {  # by architecture: what vLLM 0.32 has for it, the better known first
    "Qwen2_5_VLForConditionalGeneration": ("evs",),
    "Qwen3VLForConditionalGeneration": ("evs", "vidcom2"),
}
OWN_RULE = "the engine's own rule at the retention of the config, whose method it does not know: measure it there"
PICTURES = "pictures are not pruned, and a video keeps its first frame whole"


def vllm_video_arguments(config: PruningConfig, layers: int) -> EngineArguments:
    """The options that prune videos to the retention of a config.

    Args:
        config: how to prune.
        layers: of the model's language model.

    Raises:
        FlowpruneError: the config does not say which model it is for, or vLLM prunes no videos of that.
    """
    if config.model is None or config.model.architecture not in METHODS:
        whose = "does not say which model it is for" if config.model is None else f"is for {config.model.architecture}"
        raise FlowpruneError(
            f"vLLM prunes videos of {', '.join(METHODS)}, and the config {whose}: export it for target=vllm, which "
            "hands over what is left of each frame."
        )
    removed = rounded_up(1 - allowed_ratio(config, layers), 4)
    first, *others = METHODS[config.model.architecture]
    return EngineArguments(
        "vllm-video",
        {"video_pruning_rate": removed, "video_pruning_method": first},
        tuple(
            f"vllm serve MODEL --video-pruning-rate {removed:g} --video-pruning-method {each}"
            for each in (first, *others)
        ),
        one_step_ratio(config.schedule, layers),
        round(1 - removed, 4),
        (OWN_RULE, PICTURES),
    )
