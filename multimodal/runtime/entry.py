"""What a model and its base model are given: read on the host, before they make anything of it."""

from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import StaticCache

from multimodal.errors import FlowpruneError
from multimodal.evidence import VisionEvidence, VisionRequest, token_evidence
from multimodal.families import Modules
from multimodal.layout import Layout
from multimodal.runtime.cache import PrunedCache, check_dynamic
from multimodal.runtime.calls import (
    check_outputs,
    check_unpacked,
    kinds,
    on_host,
    placeholders,
    seen_by_last,
    text_positions,
    two_dimensional,
)
from multimodal.runtime.forward import Forward, Unlocated
from multimodal.runtime.hooks import Hook
from multimodal.runtime.watch import Encoded, Modality
from multimodal.versions import cache_of


class Entry:
    """Notes where placeholders and padding are, and what was encoded of the pixels.

    Args:
        modules: of the model.
        forward: where it is noted.
        requests: what the method asks of the tower.
        serves_static: whether static caches can be filled.
    """

    def __init__(self, modules: Modules, forward: Forward, requests: list[VisionRequest], serves_static: bool) -> None:
        self._modules = modules
        self._forward = forward
        self._requests = requests
        self._serves_static = serves_static

    def attach(self) -> list[RemovableHandle]:
        """Put the hooks on; the handles take them off."""
        model, base = self._modules.model, self._modules.base
        return [
            model.register_forward_pre_hook(Hook(self._enter_model), with_kwargs=True),
            base.register_forward_pre_hook(Hook(self._enter_base), with_kwargs=True),
            base.register_forward_hook(Hook(self._leave_base), always_call=True),
        ]

    def see_encoded(self, modality: Modality, output: Any, layouts: list[Layout], views: list[VisionEvidence]) -> None:
        forward, answers = self._forward, token_evidence(self._modules.geometry, self._requests, layouts, views)
        encoded = forward.encoded[modality] = Encoded(layouts, answers)
        forward.outputs = [(known, own) for known, own in forward.outputs if known() is not None]
        if not isinstance(output, tuple | list):  # a model output, which can be referred to
            forward.outputs.append((ref(output), encoded))

    def _encoded(self, kind: Modality, output: Any) -> Encoded | None:
        """What was encoded before this forward; None: it encodes by itself.

        Raises:
            FlowpruneError: nobody saw it.
        """
        if output is None:
            return None
        for known, encoded in self._forward.outputs:
            if (seen := known()) is output or (seen is not None and _features_at(seen) == _features_at(output)):
                return encoded
        raise FlowpruneError(
            f"mm_encoder_outputs holds a {kind} that was encoded outside of this block, or in parts: hand in what "
            f"get_{kind}_features returns inside of it, and leave prefill_chunk_size unset."
        )

    def _enter_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kinds(kwargs):
            check_outputs(self._modules.model.config, kwargs)

    def _enter_base(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read where placeholders and padding are, before the model makes anything of them."""
        forward = self._forward
        forward.reset()  # an earlier forward may have failed on its way to the text model
        forward.in_base = True
        if args:
            args, kwargs = args[1:], kwargs | {"input_ids": args[0]}
        cache, ids, embeds = cache_of(kwargs), kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        new: Any = embeds if ids is None else ids
        given = kinds(kwargs)
        pruned = isinstance(cache, PrunedCache) and cache.ledger is not None
        if given and isinstance(cache, StaticCache) and self._serves_static:
            forward.mask = seen_by_last(kwargs.get("attention_mask"), new.shape[1])
        elif given or pruned:
            if cache is not None:
                check_dynamic(cache)
            forward.mask = two_dimensional(kwargs.get("attention_mask"))
        if pruned and kwargs.get("position_ids") is None:
            # padding is known, but not to the model
            kwargs = kwargs | {"position_ids": cache.ledger.positions(new.shape[1])}
        if not given:
            if ids is None and embeds is not None and new.shape[1] > 1:
                raise FlowpruneError(
                    "inputs_embeds came without pixels, so what of them is visual cannot be told: pass input_ids and "
                    "the processor's pixels."
                )
            return args, kwargs
        ids = placeholders(self._modules, new) if ids is None else ids
        alone = forward.mask is None and (cache is None or not cache.get_seq_length())
        token_ids, valid, positions = on_host(ids, forward.mask, text_positions(kwargs) if alone else None)
        check_unpacked(positions)
        blocks = self._modules.geometry.bidirectional_blocks(kwargs | {"input_ids": ids})
        outputs = kwargs.get("mm_encoder_outputs") or {}
        encoded = {kind: self._encoded(kind, outputs.get(kind)) for kind in given}
        forward.unlocated = Unlocated(encoded, token_ids, valid, blocks)
        return args, kwargs

    def _leave_base(self, *_: Any) -> None:
        self._forward.in_base = False


def _features_at(output: Any) -> int:
    """Where an encoder's features lie: accelerate hands on another object that holds the same ones."""
    features = output.pooler_output
    first: Tensor = features[0] if isinstance(features, tuple | list) else features
    return first.data_ptr()
