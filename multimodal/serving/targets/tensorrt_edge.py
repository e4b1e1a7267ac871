"""TensorRT-Edge-LLM: DART, as options of ``llm_inference``.

https://nvidia.github.io/TensorRT-Edge-LLM/user_guide/features/visual-token-pruning.html: ``--dartReductionRatio`` is
the share of visual tokens to remove, in (0, 1); each image keeps ceil(tokens · (1 − ratio)), at their own positions.
The layers inside its engine cannot be seen, so it prunes before the language model, by embeddings instead of keys: a
config's retention is met there, its selection is not.
"""

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.methods.dart import DART
from multimodal.serving.limits import one_step_ratio
from multimodal.serving.targets.target import EngineArguments, allowed_ratio, odd_parts, rounded_up

SEVERAL_AXES = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")
REMARKS = (
    "it selects before the language model, by embeddings, where the config reads keys of a layer: measure it there",
    "it prunes prompts of one request at a time with 16 visual tokens or more, and says nothing where it does not",
)


def tensorrt_edge_arguments(config: PruningConfig, layers: int) -> EngineArguments:
    """The options that prune by DART to the retention of a config of DART.

    Args:
        config: how to prune.
        layers: of the model's language model.

    Raises:
        FlowpruneError: it is of another method, of several steps, keeps everything, or is for a model that it does not
            prune; with the nearest options.
    """
    removed = rounded_up(1 - allowed_ratio(config, layers), 4)
    method, model = config.method, config.model
    if not isinstance(method, DART) or (odd := odd_parts(config)):
        what = " and ".join(odd) if isinstance(method, DART) else f"the method {method.name}"
        raise FlowpruneError(
            f"TensorRT-Edge-LLM knows DART in one step, not {what}: search with method=dart search.steps=1, or give it "
            f"--visualPrune --dartReductionRatio {removed:g}, which has the same retention."
        )
    if config.positions != "original":
        raise FlowpruneError(
            "TensorRT-Edge-LLM keeps the tokens' own positions, and the config's are compact: search with "
            "search.positions=[original]."
        )
    if model is not None and model.architecture not in SEVERAL_AXES:
        raise FlowpruneError(
            f"TensorRT-Edge-LLM prunes models with several rotary axes alone ({', '.join(SEVERAL_AXES)}), and the "
            f"config is for {model.architecture}: serve it with engine=transformers, or tune one of these."
        )
    if not 0 < removed < 1:
        raise FlowpruneError(
            "TensorRT-Edge-LLM removes a share in (0, 1), and the config keeps everything: leave it out."
        )
    arguments = {
        "visualPrune": True,
        "dartReductionRatio": removed,
        "dartPivotImageTokens": method.visual_pivots,
        "dartPivotTextTokens": method.text_pivots,
    }
    options = " ".join(f"--{name} {value:g}" for name, value in list(arguments.items())[1:])
    return EngineArguments(
        "tensorrt-edge",
        arguments,
        (
            "llm_inference --engineDir LLM_ENGINE --multimodalEngineDir VISUAL_ENGINE --inputFile REQUESTS.json "
            f"--outputFile ANSWERS.json --visualPrune {options}",
        ),
        one_step_ratio(config.schedule, layers),
        round(1 - removed, 4),
        REMARKS,
    )
