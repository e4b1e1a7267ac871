"""What a method's requests are answered with at a step of a prefill."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from multimodal.constants import constant
from multimodal.errors import FlowpruneError
from multimodal.evidence import (
    LanguageAttention,
    LanguageVectors,
    Request,
    TextEmbeddings,
    TextStates,
    VisionRequest,
    VisualEmbeddings,
)
from multimodal.gathering import tokens_at
from multimodal.importance import chosen_attention
from multimodal.layout import Layout
from multimodal.runtime.group import Group
from multimodal.runtime.masks import attention_mask
from multimodal.runtime.segment import Segment, gather_tokens

if TYPE_CHECKING:
    from multimodal.runtime.prefill import Prefill


class Compared(NamedTuple):
    """What a layer of the language model compared: queries ``[B, heads, L, d]``, keys and values."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    softcap: float | None


class Answers:
    """The evidence of one prefill.

    Args:
        prefill: which.
        embeds: its input embeddings ``[B, L, C]``.
    """

    def __init__(self, prefill: "Prefill", embeds: Tensor) -> None:
        self._prefill = prefill
        self._prompt = prefill.prompt
        self._method = prefill.config.method
        asks = any(isinstance(each, TextEmbeddings | VisualEmbeddings) for each in self._method.evidence)
        self._embeds = embeds if asks else None
        self._of_layer: dict[LanguageAttention | LanguageVectors, Tensor] = {}  # of the layer that ran last

    def answer(self, group: Group, segment: Segment, hidden: Tensor, request: Request) -> Tensor:
        """The answer to a request, for the tokens of a group.

        Args:
            group: whose tokens.
            segment: what the layer before the step has seen.
            hidden: its hidden states ``[B, L, C]``.
            request: what is asked.

        Raises:
            FlowpruneError: nothing answers it.
        """
        request = self._prefill.config.seen_as(request)
        if isinstance(request, VisionRequest):
            key = "evidence", request, group.images
            whole = self._prefill.memoised(key, lambda: self._of_patches(request, group))
            return whole.gather(1, group.index) if whole.ndim == 2 else tokens_at(whole, group.index)
        if isinstance(request, LanguageAttention) and request in self._of_layer:
            seen = self._of_layer[request].to(group.index.device)[group.rows]
            seen = seen[..., 0, :] if request.rows == "last" else seen
            slots = segment.slots(group.in_prompt, group.rows)
            slots = slots.view(len(slots), *[1] * (seen.ndim - 2), -1)
            return seen.gather(-1, slots.expand(*seen.shape[:-1], -1))
        if isinstance(request, LanguageVectors) and request in self._of_layer:
            own = self._of_layer[request].to(group.index.device)
            if request.rows == "visual":
                return own[group.rows.unsqueeze(1), segment.slots(group.in_prompt, group.rows)]
            return own[group.rows]
        if isinstance(request, TextStates):
            text = self._prefill.placed.text.to(hidden.device)
            slots = segment.slots(text.clamp(min=0))
            return _masked(gather_tokens(hidden, slots), text).to(group.index.device)[group.rows]
        if isinstance(request, TextEmbeddings) and self._embeds is not None:
            text = self._prefill.placed.text.to(self._embeds.device)
            return _masked(gather_tokens(self._embeds, text.clamp(min=0)), text).to(group.index.device)[group.rows]
        if isinstance(request, VisualEmbeddings) and self._embeds is not None:
            return self._embeds.to(group.index.device)[group.rows.unsqueeze(1), group.table]
        raise FlowpruneError(
            f"Nothing answers {request!r}, which {self._method.name} asks for: declare it as the method's evidence, "
            "and choose the attention implementation before prune()."
        )

    def _of_patches(self, request: VisionRequest, group: Group) -> Tensor:
        """``[images, patch tokens]`` or ``[images, patch tokens, C]``."""
        answers = self._prompt.evidence[request]
        own = [[answers[source] for source in self._prompt.images[image].sources] for image in group.images]
        images = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in own]
        whole = (images[0].unsqueeze(0) if len(images) == 1 else torch.stack(images)).to(group.index.device)
        if not group.layout.newlines:
            return whole
        return whole.index_select(1, constant(_patch_index, whole.device, group.layout))

    def see_attention(self, layer: int, compared: Compared) -> None:
        """Keep of the layer before a step what that step reads."""
        self._of_layer = {}
        for request in self._method.evidence:
            if isinstance(request, LanguageAttention) and request.layer == "before":
                self._of_layer[request] = self._rows_seen(layer, request, compared)
            elif isinstance(request, LanguageVectors):
                self._of_layer[request] = self._vectors(layer, request, compared)

    def see_next(self, layer: int, compared: Compared) -> None:
        """Keep how the layer that a step comes before would attend."""
        for request in self._method.evidence:
            if isinstance(request, LanguageAttention) and request.layer == "next":
                self._of_layer[request] = self._rows_seen(layer, request, compared)

    @torch.no_grad()
    def _rows_seen(self, layer: int, request: LanguageAttention, compared: Compared) -> Tensor:
        """Attention of the rows asked for to the tokens of the prompt that are left ``[B, rows, L]``, or by head
        ``[B, heads, rows, L]``."""
        prefill, keys, device = self._prefill, compared.keys, compared.keys.device
        segment = prefill.segment_of(layer).to(device)
        index = self._index(request.rows, device)
        slots = segment.slots(index.clamp(min=0))
        queries = _at(compared.queries, slots)
        blocks = prefill.blocks(layer)
        blocks = None if blocks is None else blocks.to(device)
        # the next layer is looked at before its step: what it will hold is not known, and must not be remembered
        held = prefill.new_keys(layer) if request.layer == "next" else prefill.keys(layer)
        mask = attention_mask(
            held.to(device).last(keys.shape[2]),
            index + prefill.before,
            torch.float32,
            prefill.window(layer),
            blocks,
            None if blocks is None else blocks.gather(1, slots),
            prefill.geometry.window_cuts_blocks,
        )
        seen = chosen_attention(queries, keys, compared.scaling, mask, compared.softcap)
        seen = seen[..., -segment.index.shape[1] :].masked_fill((index < 0)[:, None, :, None], 0)
        return seen if request.heads == "each" else seen.mean(1)

    def _vectors(self, layer: int, request: LanguageVectors, compared: Compared) -> Tensor:
        """Vectors of all tokens of the prompt that are left, or of the rows asked for ``[B, rows, heads, d]``."""
        own: Tensor = getattr(compared, request.kind)
        segment = self._prefill.segment_of(layer).to(own.device)
        own = own[:, :, -segment.index.shape[1] :]  # keys of the conversation before lie before
        if request.rows == "visual":
            return own.transpose(1, 2)
        index = self._index(request.rows, own.device)
        return _masked(_at(own, segment.slots(index.clamp(min=0))).transpose(1, 2), index)

    def _index(self, rows: str, device: torch.device) -> Tensor:
        placed = self._prefill.placed
        return (placed.text if rows == "text" else placed.last).to(device)


def _patch_index(layout: Layout) -> Tensor:
    return layout.patch_index


def _at(vectors: Tensor, slots: Tensor) -> Tensor:
    """``[B, heads, L, d]`` and ``[B, rows]`` → ``[B, heads, rows, d]``."""
    return vectors.gather(2, slots[:, None, :, None].expand(-1, vectors.shape[1], -1, vectors.shape[3]))


def _masked(values: Tensor, index: Tensor) -> Tensor:
    """Rows ``[B, rows, …]``, 0 where their index ``[B, rows]`` is −1."""
    return values.masked_fill((index < 0).view(*index.shape, *[1] * (values.ndim - 2)), 0)
