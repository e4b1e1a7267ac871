"""``with prune(model, config):`` — hooks on a stock transformers model, gone on exit."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from multimodal.config import PruningConfig
from multimodal.errors import FlowpruneError
from multimodal.families import modules_of
from multimodal.recording.recordings import Recordings
from multimodal.runtime.answers import Compared
from multimodal.runtime.attention import observed_attention
from multimodal.runtime.cache import PrunedCache, begin_pruned
from multimodal.runtime.calls import new_tokens, two_dimensional
from multimodal.runtime.entry import Entry
from multimodal.runtime.fitting import check_fits
from multimodal.runtime.forward import Forward
from multimodal.runtime.hooks import Hook, MethodHook
from multimodal.runtime.ledger import Ledger
from multimodal.runtime.lookahead import Looked, look_ahead, observed_layers
from multimodal.runtime.outcome import Outcome
from multimodal.runtime.prefill import Prefill
from multimodal.runtime.prompt import Prompt, locate
from multimodal.runtime.reading import Reading
from multimodal.runtime.report import SampleReport, reports
from multimodal.runtime.tower import tower_pruning
from multimodal.runtime.watch import Encoded, watch_vision
from multimodal.versions import CACHE_NAMES, cache_of

_in_use: WeakSet[nn.Module] = WeakSet()


@contextmanager
def prune(model: PreTrainedModel, config: PruningConfig, *, recordings: Recordings | None = None) -> Iterator["Pruner"]:
    """Prune the visual tokens of every prompt that the model reads inside the ``with`` block.

    The outputs of a pruned prefill are those of the tokens that are left, padded on the left; ``report[i].places``
    tells which they are. A cache that it fills counts the tokens of the unpruned conversation (``get_seq_length()``),
    and can be gone on with in this block or a later one. Other models, copies of this one among them, are not touched.

    Args:
        model: a stock transformers vision-language model of a supported family, or a wrapper of one (PEFT, a compiled
            model).
        config: how to prune.
        recordings: where prefills and decoding steps are recorded, to be replayed without the host's work between
            their launches; None: nothing is.

    Yields:
        The pruner; its ``report`` describes the last prefill.

    Raises:
        FlowpruneError: the config does not fit the model, the model is being pruned already, or recordings insist and
            it cannot be recorded; the model is untouched.
    """
    pruner = Pruner(model, config, recordings)
    own = pruner.modules.model
    if own in _in_use:
        raise FlowpruneError("This model is being pruned already: leave the outer prune() block first.")
    with ExitStack() as stack:
        _in_use.add(own)
        stack.callback(_in_use.discard, own)
        pruner.attach(stack)
        yield pruner


class Pruner:
    """Drives a :class:`~multimodal.runtime.prefill.Prefill` from the model's own forward passes.

    Use :func:`prune`; this class is what it yields. Several threads may use the model at once: what a forward pass
    shows is kept by thread, what was pruned by the cache it went to.
    """

    def __init__(self, model: PreTrainedModel, config: PruningConfig, recordings: Recordings | None = None) -> None:
        self._recordings = recordings
        self.config = config
        self.modules = modules_of(model)
        check_fits(self.modules, config)
        self._requests = config.vision_requests
        self._forward = Forward()
        self._entry = Entry(self.modules, self._forward, self._requests, serves_static=recordings is not None)
        self._last: Outcome | None = None  # of any thread
        text = self.modules.text_model
        self._stock = text.forward
        self._recorded = None if recordings is None else recordings.path(self.modules, config, self._read)

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        modules, config, text = self.modules, self.config, self.modules.text_model
        tower = tower_pruning(modules, config)
        if tower is not None:
            tower.attach(stack)
        seeing = config.normalization, self._entry.see_encoded, tower, self._recordings
        stack.enter_context(watch_vision(modules, self._requests, *seeing))
        handles = [
            *self._entry.attach(),
            text.register_forward_pre_hook(Hook(self._enter_text_model), with_kwargs=True),
            text.register_forward_hook(Hook(self._leave_text_model), always_call=True),
        ]
        for number, layer in enumerate(modules.text_layers):
            handles.append(layer.register_forward_pre_hook(Hook(partial(self._enter_layer, number)), with_kwargs=True))
        for handle in handles:
            stack.callback(handle.remove)
        if self._recorded is not None:
            stack.callback(MethodHook(text, "forward", self._run_text_model).remove)
        read = {modules.text_layers[layer]: partial(self._see_attention, layer) for layer in observed_layers(config)}
        stack.enter_context(observed_attention(read))

    def feed(self, prompt: Prompt) -> None:
        """Announce the images of the next text-model call, for callers that bring cached embeddings."""
        self._forward.fed = prompt

    @property
    def outcome(self) -> Outcome | None:
        """What the last prefill did; None if that had no images at all.

        The last of this thread, or of any, where this one has read nothing, as where answers are streamed.
        """
        return self._forward.last if self._forward.has_read else self._last

    @property
    def report(self) -> list[SampleReport]:
        """One entry a sample of the last prefill; none if that had no images at all."""
        last, text = self.outcome, self.modules.text_model
        return [] if last is None else reports(text.config, text.dtype.itemsize, last)

    # the language model

    def _enter_text_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward, cache = self._forward, cache_of(kwargs)
        if not forward.in_base:
            forward.reset()
        prompt, forward.fed = forward.fed, None
        if (found := forward.unlocated) is not None:
            encoded = {kind: own or forward.encoded.get(kind, Encoded([])) for kind, own in found.encoded.items()}
            prompt = locate(self.modules.geometry, found.token_ids, found.valid, encoded, found.blocks)
        if prompt is None and not (isinstance(cache, PrunedCache) and cache.ledger is not None):
            if cache is None or not cache.get_seq_length():
                self._note(None)  # a prompt without images
            return None  # that, or a conversation that nothing was pruned of
        # the text model counts by its cache, which counts unpruned tokens; older versions were told by the base model
        kwargs = {name: value for name, value in kwargs.items() if name != "cache_position"}
        if not forward.in_base:
            forward.mask = two_dimensional(kwargs.get("attention_mask"))
        changed = self._go_on(cache, kwargs) if prompt is None else self._begin(prompt, cache, kwargs)
        cache = changed.pop("cache", cache)
        if cache is not None:
            changed[self.modules.cache_name] = cache
            cache.driven, forward.cache = True, cache
        # layers get masks of their own: of four dimensions, this one is handed on as it is
        states = changed.get("inputs_embeds", kwargs.get("inputs_embeds"))
        changed["attention_mask"] = torch.empty(0, 1, 1, 1, device=self._device if states is None else states.device)
        return args, {name: value for name, value in kwargs.items() if name not in CACHE_NAMES} | changed

    def _run_text_model(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The text model's forward, unless a recording has done its work."""
        output, self._forward.replayed = self._forward.replayed, None
        return run(*args, **kwargs) if output is None else output

    def _read(self, reading: Reading, cache: Cache, **kwargs: Any) -> Tensor:
        """The last hidden states of the text model's own forward, its layers driven by a reading ``[B, L, C]``."""
        mask = torch.empty(0, 1, 1, 1, device=kwargs["inputs_embeds"].device)
        self._forward.reading = reading
        try:
            output = self._stock(**kwargs, attention_mask=mask, use_cache=True, **{self.modules.cache_name: cache})
        finally:
            self._forward.reading = None
            reading.forget()
        return output.last_hidden_state

    def _replayed(self, hidden: Tensor, cache: Cache | None) -> dict[str, Any]:
        """Let a recording's output be the text model's."""
        self._forward.replayed = BaseModelOutputWithPast(last_hidden_state=hidden)
        setattr(self._forward.replayed, self.modules.cache_name, cache)
        return {}

    @property
    def _device(self) -> torch.device:
        return self.modules.text_model.device

    def _begin(self, prompt: Prompt, cache: Cache | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Prune a prompt; returns the text model's arguments that change."""
        forward, text, embeds = self._forward, self.modules.text_model, kwargs["inputs_embeds"]
        past = self._past(cache, embeds)
        if self.config.adaptive is not None:
            prompt = prompt.weighted(self.config.adaptive, embeds)
        use_cache = kwargs.get("use_cache")
        if cache is None and (text.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=text.config)
        if self._recorded is not None and past is None:
            read = self._recorded.prompt(prompt, cache, kwargs)
            if read is not None:
                self._note(read.outcome)
                return self._replayed(read.hidden, cache)
        reading = Prefill(self.modules.geometry, text.config, self.config, prompt, past, embeds.device)
        if cache is not None:
            begin_pruned(cache, past)
        levels = [prompt.spread(level) for level in kwargs.get("deepstack_visual_embeds") or ()]
        embeds, position_ids = reading.begin(embeds, kwargs.get("position_ids"), levels)
        forward.reading = reading
        changed: dict[str, Any] = {"inputs_embeds": embeds, "position_ids": position_ids, "cache": cache}
        if levels:  # which layers are given as they are entered, without a wait for where visual tokens are
            changed |= {"visual_pos_masks": None, "deepstack_visual_embeds": None}
        return changed

    def _past(self, cache: Cache | None, embeds: Tensor) -> Ledger | None:
        """What a filled cache holds."""
        if cache is None or (cached := cache.get_seq_length()) == 0:
            return None
        if isinstance(cache, PrunedCache):
            return cache.ledger
        mask = self._forward.mask
        if mask is None or mask.shape[1] != cached + embeds.shape[1]:
            mask = torch.ones(len(embeds), cached, device=embeds.device)
        return Ledger.unpruned(mask[:, :cached] != 0, self.modules.geometry.first_position)

    def _go_on(self, cache: PrunedCache, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Read tokens that follow a pruned prompt; returns the text model's arguments that change."""
        ids, ledger = kwargs.get("input_ids"), cache.ledger
        embeds: Any = kwargs.get("inputs_embeds")
        new = ids if embeds is None else embeds
        assert new is not None and ledger is not None
        batch, queries = new.shape[:2]
        valid = new_tokens(self._forward.mask, ledger.read, batch, queries)
        geometry, text = self.modules.geometry, self.modules.text_model
        position_ids: Any = kwargs.get("position_ids")
        if ledger.shift is not None:
            if position_ids is None:
                position_ids = ledger.positions(queries)
            position_ids = position_ids - ledger.shift.to(position_ids.device)
        one = queries == 1 and valid is None and embeds is not None and position_ids is not None
        if self._recorded is not None and one:
            hidden = self._recorded.token(cache, embeds, position_ids, kwargs)
            if hidden is not None:
                return self._replayed(hidden, cache)
        self._forward.reading = Reading(geometry, text.config, ledger, valid, batch, queries, new.device)
        return {"position_ids": position_ids}

    def _leave_text_model(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        forward = self._forward
        if forward.cache is not None:
            forward.cache.driven = False
            if output is not None and forward.reading is not None:  # None after an exception
                forward.cache.ledger = forward.reading.ended()
        if forward.reading is not None:
            forward.reading.forget()
            if output is not None and isinstance(forward.reading, Prefill):
                self._note(forward.reading.outcome)
        forward.reading = forward.cache = forward.unlocated = None

    def _enter_layer(self, number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward = self._forward
        if (reading := forward.reading) is None:
            return None
        hidden = args[0]
        if isinstance(reading, Prefill):
            hidden = reading.added(number, hidden)
            if reading.looks_ahead(number):
                rotary = reading.rotary(number, kwargs["position_embeddings"])
                reading.see_next(number, look_ahead(forward, layer, hidden, rotary))
        hidden, changed = reading.enter_layer(number, hidden, kwargs)
        return (hidden, *args[1:]), kwargs | changed

    def _see_attention(self, layer: int, *seen: Any) -> None:
        if self._forward.looking_ahead:
            raise Looked(Compared(*seen))
        if isinstance(reading := self._forward.reading, Prefill):
            reading.see_attention(layer, Compared(*seen))

    def _note(self, read: Outcome | None) -> None:
        self._forward.last = self._last = read
        self._forward.has_read = True
