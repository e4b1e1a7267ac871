"""``with prune(model, config):`` — hooks on a stock transformers model, gone on exit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from multimodal.config import PruningConfig
from multimodal.costs import kv_bytes
from multimodal.errors import FlowpruneError
from multimodal.families import Family, family_of
from multimodal.layout import Layout
from multimodal.observation import VisionObservation
from multimodal.prompt import Prompt, importance_maps, locate_images
from multimodal.pruned_prompt import PrunedPrompt
from multimodal.vision import watch_vision

_in_use: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class SampleReport:
    """What happened to one sample of the last prefill.

    Args:
        visual_tokens: of the unpruned prompt.
        kept: visual tokens left after each step, in the unpruned sequence's coordinates, padding not counted.
        retention: visual tokens seen by a layer ÷ original ones, averaged over layers; 1 for a text-only sample.
        kv_bytes, kv_bytes_unpruned: of the prompt's keys and values, all layers.
    """

    visual_tokens: int
    kept: tuple[Tensor, ...]
    retention: float
    kv_bytes: int
    kv_bytes_unpruned: int


@contextmanager
def prune(model: PreTrainedModel, config: PruningConfig) -> Iterator["Pruner"]:
    """Prune the visual tokens of every prompt that the model reads inside the ``with`` block.

    Args:
        model: a stock transformers vision-language model of a supported family.
        config: how to prune.

    The outputs of a pruned prefill are those of the tokens that are left.

    Yields:
        The pruner; its ``report`` describes the last prefill.

    Raises:
        FlowpruneError: the config does not fit the model, or the model is being pruned already; the model is untouched.
    """
    pruner = Pruner(model, config)
    if model in _in_use:
        raise FlowpruneError("This model is being pruned already: leave the outer prune() block first.")
    with ExitStack() as stack:
        _in_use.add(model)
        stack.callback(_in_use.discard, model)
        pruner.attach(stack)
        yield pruner


class Pruner:
    """Drives a :class:`~multimodal.pruned_prompt.PrunedPrompt` from the model's own forward passes.

    Use :func:`prune`; this class is what it yields.
    """

    def __init__(self, model: PreTrainedModel, config: PruningConfig) -> None:
        self.config = config
        self.family = family_of(model)
        check_fits(self.family, config)
        self._prompts: WeakKeyDictionary[Cache, PrunedPrompt] = WeakKeyDictionary()
        self._last: PrunedPrompt | None = None
        self._active: PrunedPrompt | None = None
        self._encoded: tuple[list[Layout], list[Tensor] | None] = ([], None)  # by the last image encoding
        self._is_visual: Tensor | None = None
        self._pending: Prompt | None = None

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        family, config = self.family, self.config
        watch = watch_vision(family, config.method.vision_layers, config.normalisation, self._see_images)
        stack.enter_context(watch)
        text = family.text_model
        handles = [
            family.base.register_forward_pre_hook(self._enter_base, with_kwargs=True),
            text.register_forward_pre_hook(self._enter_text_model, with_kwargs=True),
            text.register_forward_hook(self._leave_text_model, always_call=True),
        ]
        for number, layer in enumerate(family.text_layers):
            handles.append(layer.register_forward_pre_hook(partial(self._enter_layer, number), with_kwargs=True))
        for handle in handles:
            stack.callback(handle.remove)

    def feed(self, prompt: Prompt) -> None:
        """Announce the images of the next text-model call, for callers that bring cached embeddings."""
        self._pending = prompt

    @property
    def report(self) -> list[SampleReport]:
        """One entry a sample of the last prefill; none if that had no images at all."""
        return [] if self._last is None else _report(self.family, self.config, self._last)

    def _see_images(self, layouts: list[Layout], vision: VisionObservation) -> None:
        self._encoded = (layouts, importance_maps(self.family, self.config, layouts, vision))

    def _enter_base(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note where the placeholders are; the text model is not told."""
        self._is_visual = None  # an earlier forward may have failed on its way to the text model
        outputs = dict(kwargs.get("mm_encoder_outputs") or {})
        if kwargs.get("pixel_values_videos") is not None or outputs.get("video") is not None:
            raise FlowpruneError("Videos are not pruned yet: pass images only, or generate outside of prune().")
        if kwargs.get("pixel_values") is None and outputs.get("image") is None:
            return
        input_ids = args[0] if args else kwargs.get("input_ids")
        if input_ids is None:
            raise FlowpruneError("Images came without input_ids, which say where they are: pass input_ids.")
        self._is_visual = input_ids == self.family.image_token_id

    def _enter_text_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # transformers 5.0 counts the unpruned sequence here; without it, the text model counts what is cached
        kwargs = {key: value for key, value in kwargs.items() if key != "cache_position"}
        cache = kwargs.get(self.family.cache_name)
        if self._is_visual is not None and self._pending is None:
            self._pending = locate_images(self._is_visual, *self._encoded)
        if self._pending is not None:
            return args, kwargs | self._begin(self._pending, cache, kwargs)
        if cache is None or (known := self._prompts.get(cache)) is None:
            if cache is None or cache.get_seq_length() == 0:
                self._last = None  # a prompt without images
            return None  # that, or a prompt that was read outside of this block
        self._active = known
        embeds = kwargs.get("inputs_embeds")
        new = kwargs["input_ids"] if embeds is None else embeds
        _drop_rejected(known, cache, kwargs.get("attention_mask"), new.shape[1])
        position_ids, mask = known.resume(new, kwargs.get("position_ids"), cache.get_seq_length())
        return args, kwargs | {"position_ids": position_ids, "attention_mask": mask}

    def _begin(self, prompt: Prompt, cache: Cache | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Prune a prompt; returns the text model's arguments that change."""
        if cache is not None and cache.get_seq_length() > 0:
            raise FlowpruneError(
                "An image in a later turn, with a cache already filled, is not pruned yet: start with an empty cache."
            )
        if cache is not None and type(cache) is not DynamicCache:
            raise FlowpruneError(
                f"{type(cache).__name__} cannot hold layers of different lengths: leave cache_implementation unset."
            )
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        if mask is not None and getattr(mask, "ndim", 0) != 2:
            raise FlowpruneError("A ready-made attention mask cannot be pruned: pass the 2-D padding mask.")
        valid = embeds.new_ones(embeds.shape[:2]).bool() if mask is None else mask.to(embeds.device).bool()
        pruned = PrunedPrompt(self.family, self.config, prompt)
        embeds, position_ids, mask = pruned.begin(embeds, valid, kwargs.get("position_ids"))
        use_cache = kwargs.get("use_cache")
        if cache is None and (self.family.text_model.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.family.text_model.config)
        if cache is not None:
            self._prompts[cache] = pruned
        self._active = self._last = pruned
        return {
            "inputs_embeds": embeds,
            "position_ids": position_ids,
            "attention_mask": mask,
            self.family.cache_name: cache,
        }

    def _leave_text_model(self, *_: Any) -> None:
        if self._active is not None:
            self._active.end_forward()
        self._active = self._pending = self._is_visual = None

    def _enter_layer(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._active is None:
            return None
        hidden, changed = self._active.enter_layer(number, args[0], kwargs)
        return (hidden, *args[1:]), kwargs | changed


def _drop_rejected(pruned: PrunedPrompt, cache: Cache, mask: Any, queries: int) -> None:
    """Cut guesses that assisted decoding has rejected and transformers has left in the cache.

    Older versions (5.0, 5.5) crop to a length of the unpruned sequence, which layers that have lost tokens do not
    reach. A mask over the unpruned sequence, as generate() passes it, tells how much of it is meant to be cached.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or (tokens := mask.shape[1] - queries) >= pruned.tokens:
        return
    if tokens == cache.get_seq_length() > pruned.cached(0, tokens):
        return  # a mask over what is cached
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if (rejected := layer.get_seq_length() - pruned.cached(number, tokens)) > 0:
            layer.crop(-rejected)


def check_fits(family: Family, config: PruningConfig) -> None:
    """Refuse a config that the model cannot follow.

    Raises:
        FlowpruneError: one sentence that names the field and the fix.
    """
    architecture, layers = type(family.model).__name__, len(family.text_layers)
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
    for layer in config.method.vision_layers:
        family.vision_layer(layer)
    if config.method.needs_entropy and config.normalisation is None:
        raise FlowpruneError(
            "image_mean and image_std are missing, which entropy needs: take them from processor.image_processor."
        )
    backend = family.text_model.config._attn_implementation
    if config.method.biases_attention and "flash" in backend:
        raise FlowpruneError(
            f"recycling_weight needs an additive mask, which {backend} does not take: "
            "set it to 0 or load the model with attn_implementation='sdpa'."
        )
    if backend == "flex_attention":
        raise FlowpruneError("flex_attention is not pruned yet: load the model with attn_implementation='sdpa'.")


def _report(family: Family, config: PruningConfig, pruned: PrunedPrompt) -> list[SampleReport]:
    text = family.text_model.config
    element_bytes = family.text_model.dtype.itemsize
    layers = text.num_hidden_layers
    reports = []
    for total, visual, kept in pruned.rows():
        left = [visual] * layers
        for step, places in zip(config.schedule, kept, strict=True):
            left[step.layer :] = [len(places)] * (layers - step.layer)
        reports.append(
            SampleReport(
                visual_tokens=visual,
                kept=kept,
                retention=sum(left) / (layers * visual) if visual else 1.0,
                kv_bytes=kv_bytes(text, [total - visual + n for n in left], element_bytes),
                kv_bytes_unpruned=kv_bytes(text, [total] * layers, element_bytes),
            )
        )
    return reports
