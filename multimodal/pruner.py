"""``with prune(model, config):`` — hooks on a stock transformers model, gone on exit."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, QuantizedCache

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import family_of
from multimodal.fitting import check_fits
from multimodal.layout import Layout
from multimodal.observation import VisionObservation
from multimodal.prompt import Encoded, Prompt, importance_maps, locate
from multimodal.pruned_prompt import PrunedPrompt
from multimodal.report import SampleReport, reports
from multimodal.vision import Modality, watch_vision

PROMPT = "flowprune_prompt"  # attribute of a cache, so that copies of it and later blocks know what was pruned
_in_use: WeakSet[nn.Module] = WeakSet()


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


class _Forward(threading.local):
    """What one thread's forward pass has shown on its way from the base model to the text model."""

    def __init__(self) -> None:
        self.encoded: dict[Modality, Encoded] = {}  # by the last encoding of each modality
        self.unlocated: tuple[list[Modality], Tensor, Tensor | None] | None = None  # what, token ids, blocks
        self.padding: Any = None  # the attention mask that the base model was given
        self.pending: Prompt | None = None
        self.active: PrunedPrompt | None = None
        self.last: PrunedPrompt | None = None


class Pruner:
    """Drives a :class:`~multimodal.pruned_prompt.PrunedPrompt` from the model's own forward passes.

    Use :func:`prune`; this class is what it yields. Several threads may use the model at once: what a forward pass
    shows is kept by thread, what was pruned by the cache it went to.
    """

    def __init__(self, model: PreTrainedModel, config: PruningConfig) -> None:
        self.config = config
        self.family = family_of(model)
        check_fits(self.family, config)
        self._forward = _Forward()

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        family, config = self.family, self.config
        watch = watch_vision(family, config.method.vision_layers, config.normalisation, self._see_encoded)
        stack.enter_context(watch)
        text = family.text_model
        plainly = torch.compiler.disable  # a compiled model runs the hooks as they are
        handles = [
            family.base.register_forward_pre_hook(plainly(self._enter_base), with_kwargs=True),
            text.register_forward_pre_hook(plainly(self._enter_text_model), with_kwargs=True),
            text.register_forward_hook(plainly(self._leave_text_model), always_call=True),
        ]
        for number, layer in enumerate(family.text_layers):
            enter = plainly(partial(self._enter_layer, number))
            handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        for handle in handles:
            stack.callback(handle.remove)

    def feed(self, prompt: Prompt) -> None:
        """Announce the images of the next text-model call, for callers that bring cached embeddings."""
        self._forward.pending = prompt

    @property
    def report(self) -> list[SampleReport]:
        """One entry a sample of this thread's last prefill; none if that had no images at all."""
        last = self._forward.last
        return [] if last is None else reports(self.family, self.config, last)

    def _see_encoded(self, modality: Modality, layouts: list[Layout], vision: list[VisionObservation]) -> None:
        self._forward.encoded[modality] = layouts, importance_maps(self.family, self.config, layouts, vision)

    def _enter_base(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note where placeholders are; what follows a known prompt is told its places in the unpruned sequence."""
        forward, cache = self._forward, kwargs.get(self.family.cache_name)
        if args:
            args, kwargs = args[1:], kwargs | {"input_ids": args[0]}
        if cache is not None and (known := _prompt_of(cache)) is not None:
            kwargs = kwargs | _following(known, cache, kwargs, self.family.first_position)
        # an earlier forward may have failed on its way to the text model
        forward.padding, forward.unlocated, forward.pending = kwargs.get("attention_mask"), None, None
        outputs = kwargs.get("mm_encoder_outputs") or {}
        pixels: dict[Modality, str] = {"image": "pixel_values", "video": "pixel_values_videos"}
        given = [kind for kind, name in pixels.items() if kwargs.get(name) is not None or outputs.get(kind) is not None]
        if given:
            if (input_ids := kwargs.get("input_ids")) is None:
                raise FlowpruneError("Images came without input_ids, which say where they are: pass input_ids.")
            forward.unlocated = given, input_ids, self.family.bidirectional_blocks(kwargs)
        return args, kwargs

    def _enter_text_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # transformers 5.0 counts the unpruned sequence here; without it, the text model counts what is cached
        kwargs = {key: value for key, value in kwargs.items() if key != "cache_position"}
        forward, cache = self._forward, kwargs.get(self.family.cache_name)
        if forward.unlocated is not None and forward.pending is None:
            given, input_ids, blocks = forward.unlocated
            encoded = {kind: forward.encoded.get(kind, ([], None)) for kind in given}
            forward.pending = locate(self.family, input_ids, encoded, blocks)
        if forward.pending is not None:
            return args, kwargs | self._begin(forward.pending, cache, kwargs)
        if cache is None or (known := _prompt_of(cache)) is None:
            if cache is None or cache.get_seq_length() == 0:
                forward.last = None  # a prompt without images
            return None  # that, or a prompt that was read outside of this block
        forward.active = known
        embeds = kwargs.get("inputs_embeds")
        new = kwargs["input_ids"] if embeds is None else embeds
        known.rewind(cache.get_seq_length())
        position_ids, mask = known.resume(new.shape[1], kwargs.get("position_ids"))
        return args, kwargs | {"position_ids": position_ids, "attention_mask": mask}

    def _begin(self, prompt: Prompt, cache: Cache | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Prune a prompt; returns the text model's arguments that change."""
        if cache is not None and not isinstance(cache, DynamicCache | QuantizedCache):
            raise FlowpruneError(
                f"{type(cache).__name__} cannot hold layers of different lengths: leave cache_implementation unset."
            )
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        if self._forward.unlocated is not None:  # the base model may have made it one for attention, or several
            mask = self._forward.padding
        if mask is not None and getattr(mask, "ndim", 0) != 2:
            raise FlowpruneError("A ready-made attention mask cannot be pruned: pass the 2-D padding mask.")
        valid = embeds.new_ones(embeds.shape[:2]).bool() if mask is None else mask.to(embeds.device).bool()
        past = self._past(cache, valid, embeds.shape[1])
        pruned = PrunedPrompt(self.family, self.config, prompt, past)
        embeds, position_ids, mask, deepstack = pruned.begin(
            embeds,
            valid[:, -embeds.shape[1] :],
            kwargs.get("position_ids"),
            kwargs.get("deepstack_visual_embeds") or (),
        )
        use_cache = kwargs.get("use_cache")
        if cache is None and (self.family.text_model.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.family.text_model.config)
        if cache is not None:
            setattr(cache, PROMPT, pruned)
        self._forward.active = self._forward.last = pruned
        changed: dict[str, Any] = {
            "inputs_embeds": embeds,
            "position_ids": position_ids,
            "attention_mask": mask,
            self.family.cache_name: cache,
        }
        if deepstack:
            changed |= {"visual_pos_masks": pruned.visual_left, "deepstack_visual_embeds": deepstack}
        return changed

    def _past(self, cache: Cache | None, valid: Tensor, new: int) -> PrunedPrompt | None:
        """What a filled cache holds."""
        if cache is None or (cached := cache.get_seq_length()) == 0:
            return None
        if (known := _prompt_of(cache)) is not None:
            known.rewind(cached)
            return known
        told = valid.shape[1] == cached + new
        earlier = valid[:, :cached] if told else valid.new_ones(len(valid), cached)
        return PrunedPrompt.unpruned(self.family, self.config, earlier)

    def _leave_text_model(self, *_: Any) -> None:
        forward = self._forward
        if forward.active is not None:
            forward.active.end_forward()
        forward.active = forward.pending = forward.unlocated = None

    def _enter_layer(self, number: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        active = self._forward.active
        if active is None:
            return None
        hidden, changed = active.enter_layer(number, args[0], kwargs)
        return (hidden, *args[1:]), kwargs | changed


def _prompt_of(cache: Cache) -> PrunedPrompt | None:
    """What was pruned on the way into a cache, in this block or another one; None: nothing."""
    return getattr(cache, PROMPT, None)


def _following(known: PrunedPrompt, cache: Cache, kwargs: dict[str, Any], first_position: int) -> dict[str, Any]:
    """What changes in the arguments of tokens that follow a pruned prompt: they are told their true positions."""
    by_token = ("input_ids", "inputs_embeds", "position_ids", "token_type_ids", "mm_token_type_ids")
    given = {name: kwargs[name] for name in by_token if kwargs.get(name) is not None}
    queries = (given["input_ids"] if "input_ids" in given else given["inputs_embeds"]).shape[1]
    cached = cache.get_seq_length()
    changed: dict[str, Any] = {}
    if queries > 1 and (total := _told_length(kwargs, first_position)) is not None:
        new = total - known.tokens_at(cached)
        if total - queries == cached and 0 < new < queries:
            # generate() has cut a conversation by what the cache holds, which is less than was read
            changed = {name: t[:, -new:] if name == "inputs_embeds" else t[..., -new:] for name, t in given.items()}
            queries = new
    mask = kwargs.get("attention_mask")
    if not changed and isinstance(mask, Tensor) and mask.ndim == 2:
        _drop_rejected(known, cache, mask, queries)
    if "position_ids" not in given:
        known.rewind(cache.get_seq_length())
        changed["position_ids"] = known.next_positions(queries)
    return changed


def _told_length(kwargs: dict[str, Any], first_position: int) -> int | None:
    """Tokens of the unpruned conversation, as a mask over it tells, or positions that count every token."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, Tensor):
        return mask.shape[1] if mask.ndim == 2 else None
    if positions is None or (positions.ndim == 3 and len(positions) == 3):  # rotary axes alone
        return None
    counted = positions if positions.ndim == 2 else positions[0]
    return int(counted[..., -1].max()) + 1 - first_position


def _drop_rejected(pruned: PrunedPrompt, cache: Cache, mask: Tensor, queries: int) -> None:
    """Cut guesses that assisted decoding has rejected and transformers has left in the cache.

    Older versions (5.0, 5.5) crop to a length of the unpruned sequence, which layers that have lost tokens do not
    reach. A mask over the unpruned sequence, as generate() passes it, tells how much of it is meant to be cached.
    """
    if (tokens := mask.shape[1] - queries) >= pruned.tokens:
        return
    if tokens == cache.get_seq_length() > pruned.cached(0, tokens):
        return  # a mask over what is cached
    layers: list[Any] = cache.layers
    for number, layer in enumerate(layers):
        if (rejected := layer.get_seq_length() - pruned.cached(number, tokens)) > 0:
            layer.crop(-rejected)
