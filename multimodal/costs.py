"""What a plan costs: FLOPs, KV bytes and retention, by integer arithmetic on each layer's tokens. No weights needed."""

import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PretrainedConfig

from multimodal.adaptive import Adaptive
from multimodal.config import PruningConfig, PruningStep
from multimodal.errors import FlowpruneError
from multimodal.layout import Layout
from multimodal.plan import make_plan, visual_tokens_by_layer

Count = TypeVar("Count", int, NDArray[np.int64])  # of tokens: one prompt's, or those of many


def retention(layouts: Sequence[Layout], schedule: Sequence[PruningStep], layers: int) -> float:
    """Visual tokens seen by a layer ÷ original visual tokens, averaged over layers, over all images together."""
    seen = sum(sum(visual_tokens_by_layer(layout, schedule, layers)) for layout in layouts)
    return seen / (layers * sum(layout.visual_tokens for layout in layouts))


def sliding_window(text_config: PretrainedConfig, layer: int) -> int | None:
    """Tokens that a language-model layer sees, the one that looks included; None: all."""
    types = getattr(text_config, "layer_types", None)
    slides = types is None or types[layer] == "sliding_attention"
    return getattr(text_config, "sliding_window", None) if slides else None


def kv_bytes(text_config: PretrainedConfig, tokens_by_layer: Iterable[Count], element_bytes: int = 2) -> Count:
    """Bytes of keys and values that a prompt leaves in the cache.

    Args:
        text_config: of the language model.
        tokens_by_layer: prompt tokens that each layer sees.
        element_bytes: 2 for bfloat16 and float16, 4 for float32.
    """
    # the next token is in the window, too
    token_bytes = 2 * key_heads(text_config) * head_dim(text_config) * element_bytes
    cached = (_seen(text_config, layer, n, to_come=1) for layer, n in enumerate(tokens_by_layer))
    return token_bytes * functools.reduce(operator.add, cached)


def prefill_flops(text_config: PretrainedConfig, tokens_by_layer: Iterable[Count]) -> Count:
    """Floating-point operations of a prefill's decoder layers (a multiply-add is two).

    Projections and gated MLP are 2 · tokens · weights; attention's two products are 2 · 2 · tokens² · width, of which
    a causal mask needs half, and half is counted; of a sliding window, what it needs if nothing in it is pruned.
    Embedding, norms and head are left out.
    """
    width, weights = text_config.num_attention_heads * head_dim(text_config), _layer_weights(text_config)
    layers = enumerate(tokens_by_layer)
    return sum(
        2 * n * weights + 2 * (2 * n - s) * s * width for n, s in ((n, _seen(text_config, i, n)) for i, n in layers)
    )


def decoding_flops(text_config: PretrainedConfig, tokens_by_layer: Sequence[int]) -> int:
    """Floating-point operations of one decoding step's layers after such a prompt, counted as for a prefill."""
    width, weights = text_config.num_attention_heads * head_dim(text_config), _layer_weights(text_config)
    return sum(2 * weights + 4 * _seen(text_config, i, tokens) * width for i, tokens in enumerate(tokens_by_layer))


def _seen(text_config: PretrainedConfig, layer: int, tokens: Count, to_come: int = 0) -> Count:
    """How many of these tokens their last one, or one that is to come, sees in a layer at most."""
    if (window := sliding_window(text_config, layer)) is None:
        return tokens
    beyond = tokens - (window - to_come)
    return tokens - beyond * (beyond > 0)


def _layer_weights(text_config: PretrainedConfig) -> int:
    hidden, heads, dim = text_config.hidden_size, text_config.num_attention_heads, head_dim(text_config)
    return hidden * dim * (2 * heads + 2 * key_heads(text_config)) + 3 * hidden * text_config.intermediate_size


def head_dim(text_config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads


def key_heads(text_config: PretrainedConfig) -> int:
    """Heads that a layer has keys and values of."""
    return getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads


@dataclass(frozen=True)
class Costs:
    """Of one prompt, unpruned or pruned."""

    retention: float
    prefill_flops: int
    decoding_flops: int
    kv_bytes: int


def estimate(
    text_config: PretrainedConfig,
    layouts: Sequence[Layout],
    text_tokens: int,
    config: PruningConfig | None = None,
    element_bytes: int = 2,
) -> Costs:
    """Costs of a prompt with these images.

    Args:
        text_config: of the language model.
        layouts: of the prompt's images.
        text_tokens: tokens that are not visual.
        config: how it is pruned; None: not at all.
        element_bytes: bytes of a cache element.
    """
    layers = text_config.num_hidden_layers
    [plan] = make_plan([(layouts, text_tokens)], config.schedule if config else (), layers).rows
    tokens = plan.tokens_by_layer
    return Costs(
        plan.retention,
        prefill_flops(text_config, tokens),
        decoding_flops(text_config, tokens),
        kv_bytes(text_config, tokens, element_bytes),
    )


@dataclass(frozen=True)
class Shares:
    """Of many prompts together: retention, and the pruned model's cost as a share of the unpruned one's."""

    retention: float
    flops_share: float
    kv_share: float


class Workload:
    """Some prompts together, and what a schedule leaves of their costs; made to be asked often.

    Args:
        text_config: of the language model.
        prompts: (layouts of the images, tokens that are not visual) of each.
        read_varieties: tells those of the images of each (:func:`multimodal.adaptive.variety`), once a budget adapts;
            None: they are not known.
    """

    def __init__(
        self,
        text_config: PretrainedConfig,
        prompts: Sequence[tuple[Sequence[Layout], int]],
        read_varieties: Callable[[], Sequence[Sequence[float]]] | None = None,
    ) -> None:
        self._read_varieties = read_varieties
        self._prompts = prompts
        kinds = Counter((tuple(layouts), text_tokens) for layouts, text_tokens in prompts)
        self.layers: int = text_config.num_hidden_layers
        self.layouts = list(dict.fromkeys(layout for layouts, _ in kinds for layout in layouts))
        self.numbers = np.array(list(kinds.values()))  # of prompts of each kind
        self._text_config = text_config
        self._images = np.array([[layouts.count(layout) for layout in self.layouts] for layouts, _ in kinds])
        self._text_tokens = np.array([text_tokens for _, text_tokens in kinds])
        self._full = self._costs(())

    @functools.cached_property
    def varieties(self) -> Sequence[Sequence[float]]:
        """What the images of each prompt have to see.

        Raises:
            FlowpruneError: it is not known.
        """
        if self._read_varieties is None:
            raise FlowpruneError("A budget that adapts needs the images' embeddings: run stages=[calibrate] first.")
        return self._read_varieties()

    def adapted(self, adaptive: Adaptive | None) -> "Workload":
        """The same prompts, their images with what each may keep; ``None``: the same share each.

        Raises:
            FlowpruneError: what the images have to see is not known.
        """
        if adaptive is None:
            return self
        pairs = zip(self._prompts, self.varieties, strict=True)
        return Workload(self._text_config, [(adaptive.weighted(own, seen), text) for (own, text), seen in pairs])

    def tokens_by_layer(self, schedule: Sequence[PruningStep]) -> NDArray[np.int64]:
        """Prompt tokens that each layer sees, text included, by kind of prompt ``[layers, kinds]``."""
        return self._visual_tokens(schedule) + self._text_tokens

    def shares(self, schedule: Sequence[PruningStep]) -> Shares:
        """Costs under a schedule, over all prompts."""
        return Shares(*(pruned / full for pruned, full in zip(self._costs(schedule), self._full, strict=True)))

    def _visual_tokens(self, schedule: Sequence[PruningStep]) -> NDArray[np.int64]:
        by_layout = [visual_tokens_by_layer(layout, schedule, self.layers) for layout in self.layouts]
        return (self._images @ np.array(by_layout)).T

    def _costs(self, schedule: Sequence[PruningStep]) -> tuple[int, int, int]:
        """Visual tokens seen by all layers, FLOPs and KV bytes."""
        visual = self._visual_tokens(schedule)
        tokens = visual + self._text_tokens
        flops = prefill_flops(self._text_config, tokens) @ self.numbers
        return (
            int((visual @ self.numbers).sum()),
            int(flops),
            int(kv_bytes(self._text_config, tokens) @ self.numbers),
        )
