"""vLLM behind ``flowprune serve``, which hands it the tokens that are left (:mod:`multimodal.serving.handover`)."""

import shlex
from pathlib import Path

from transformers import PretrainedConfig

from multimodal.config import PruningConfig
from multimodal.serving.limits import check_servable, one_step_ratio
from multimodal.serving.targets.target import EngineArguments
from multimodal.serving.vllm_arguments import hf_overrides, vllm_arguments

PLUGIN = "install flowprune into vLLM's own environment, too: its plugin reads what is handed over"


def vllm_target_arguments(
    config: PruningConfig,
    layers: int,
    model_config: PretrainedConfig,
    pruning: Path,
    python: str,
    front_end: str,
    model: str,
) -> EngineArguments:
    """What ``flowprune serve engine=vllm`` and ``vllm serve`` are told.

    Args:
        config: how to prune.
        layers: of the model's language model.
        model_config: of the model.
        pruning: the config's file.
        python: that has vLLM.
        front_end: folder or hub id that the endpoint reads.
        model: the same that vLLM reads.

    Raises:
        FlowpruneError: vLLM cannot serve the config, or the model; with the nearest config that it can.
    """
    check_servable(config, layers)
    overrides, flags = hf_overrides(model_config), vllm_arguments(model_config)
    served = ["flowprune", "serve", "model=path", f"model.path={front_end}", "engine=vllm", f"engine.python={python}"]
    served += [f"engine.model={model}", f"serve.configs.pruned={pruning}"]
    ratio = one_step_ratio(config.schedule, layers)
    return EngineArguments(
        "vllm",
        {"model": model, "config": str(pruning), "hf_overrides": overrides, "vllm_serve": flags},
        (shlex.join(served), shlex.join(["vllm", "serve", model, *flags])),
        ratio,
        ratio,
        (PLUGIN,),
    )
