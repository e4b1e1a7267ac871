"""OpenVINO GenAI: CDPruner, as arguments of ``generate()``.

https://openvinotoolkit.github.io/openvino.genai/docs/concepts/optimization-techniques/visual-token-pruning:
``pruning_ratio`` is the whole percentage of visual tokens to prune, 0 to 99; ``relevance_weight`` is 0 for diversity
alone. Its code (src/cpp/src/visual_language/cdpruner/kernel_builder.cpp) takes relevance as it is for 1, as the paper
does. Between 0 and 1 one way through that code has the exponential of our ``relevance``, and the other blends the
kernels of 0 and 1. By default it halves the tokens and selects from each half; ``CDPRUNER_SPLIT_THRESHOLD=0`` switches
that off. Qwen-VL models only.
"""

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.methods.cdpruner import CDPruner
from multimodal.serving.limits import one_step_ratio
from multimodal.serving.targets.target import EngineArguments, allowed_ratio, odd_parts, rounded_up

MOST = 99  # percent that it prunes
BLENDED = "between 0 and 1 OpenVINO computes relevance_weight in one of two ways, of which one is that of the search"


def openvino_arguments(config: PruningConfig, layers: int) -> EngineArguments:
    """The arguments that prune as a config of CDPruner does.

    Args:
        config: how to prune.
        layers: of the model's language model.

    Raises:
        FlowpruneError: it is of another method, or not one step before the language model; with the nearest arguments.
    """
    pruned = min(MOST, round(100 * rounded_up(1 - allowed_ratio(config, layers), 2)))
    method = config.method
    if not isinstance(method, CDPruner) or (odd := odd_parts(config, [0])):
        what = " and ".join(odd) if isinstance(method, CDPruner) else f"the method {method.name}"
        raise FlowpruneError(
            f"OpenVINO GenAI knows CDPruner in one step before the language model, not {what}: search with "
            f"method=cdpruner search.steps=1, or give it pruning_ratio={pruned}, which has the same retention."
        )
    weight = 1.0 if method.relevance is None else method.relevance
    arguments = {"pruning_ratio": pruned, "relevance_weight": weight}
    return EngineArguments(
        "openvino",
        arguments,
        (
            "CDPRUNER_SPLIT_THRESHOLD=0 python benchmark_vlm.py -m MODEL -i PICTURE -p QUESTION "
            f"--pruning_ratio {pruned} --relevance_weight {weight:g}",
        ),
        one_step_ratio(config.schedule, layers),
        (100 - pruned) / 100,
        (BLENDED,) if 0 < weight < 1 else (),
    )
