"""Fewer pixels instead of fewer tokens, for engines that prune nothing: pictures of so few visual tokens as a config
would leave of them.

Processors of the Qwen-VL kind scale a picture down to ``max_pixels`` (``size.longest_edge`` of transformers' image
processor, ``--mm-processor-kwargs`` of vLLM), which are its tokens times the square of a token's side. llama.cpp takes
the tokens (``--image-max-tokens``: most tokens of an image, of models that take pictures of any size), see
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

import json
from collections.abc import Sequence

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.serving.limits import one_step_ratio
from multimodal.serving.targets.target import EngineArguments, allowed_ratio

SMALLER = "smaller pictures, not the config's selection of tokens: compare measures what that costs, as downscaled"
OF_THE_DATA = "a cap meets the retention on average over pictures like the calibration samples, not on each"


def pixels_arguments(
    config: PruningConfig, layers: int, tokens: Sequence[int], side: int | None, least: int = 0
) -> EngineArguments:
    """The caps under which pictures have as many visual tokens together as the config leaves of them.

    Args:
        config: how to prune.
        layers: of the model's language model.
        tokens: visual tokens of some pictures as they are, such as the calibration samples'.
        side: pixels along a visual token; None for a model that takes pictures of one size.
        least: pixels that its processor enlarges smaller pictures to.

    Raises:
        FlowpruneError: the model takes pictures of one size.
    """
    retention = one_step_ratio(config.schedule, layers)
    if side is None:
        raise FlowpruneError(
            "The model takes pictures of one size, or cuts them into tiles of one, so no cap on pixels makes fewer "
            "visual tokens: export it for target=vllm, at a keep_ratio of "
            f"{retention:.4g} before the language model."
        )
    most = largest_cap(tokens, allowed_ratio(config, layers))
    pixels = {"max_pixels": most * side**2, "min_pixels": min(least, most * side**2)}
    return EngineArguments(
        "pixels",
        {**pixels, "image_max_tokens": most},
        (
            f"vllm serve MODEL --mm-processor-kwargs '{json.dumps(pixels)}'",
            f"llama-server -m MODEL.gguf --mmproj MMPROJ.gguf --image-max-tokens {most}",
        ),
        retention,
        sum(min(each, most) for each in tokens) / sum(tokens),
        (SMALLER, OF_THE_DATA),
    )


def largest_cap(tokens: Sequence[int], share: float) -> int:
    """The most tokens that each picture may have so that all together have at most that share; at least one.

    Args:
        tokens: of each picture.
        share: of all.
    """
    left, most = share * sum(tokens), 0
    for number, each in enumerate(sorted(tokens)):
        others = len(tokens) - number  # this one and those that have more
        if others * each > left:
            return max(1, int(left // others))
        left, most = left - each, each
    return most
