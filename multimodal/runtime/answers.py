"""What a method's requests are answered with at a step of a prefill."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from multimodal.errors import FlowpruneError
from multimodal.evidence import LanguageAttention, Request, TextEmbeddings, VisionRequest
from multimodal.importance import chosen_attention
from multimodal.runtime.group import Group
from multimodal.runtime.masks import attention_mask
from multimodal.runtime.prompt import padded_rows
from multimodal.runtime.segment import Segment, gather_tokens

if TYPE_CHECKING:
    from multimodal.runtime.prefill import Prefill


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
        asks = any(isinstance(request, TextEmbeddings) for request in self._method.evidence)
        self._embeds = embeds if asks else None
        self._attention: dict[str, Tensor] = {}  # of the layer that ran last, by which rows were asked

    def answer(self, group: Group, segment: Segment, request: Request) -> Tensor:
        """The answer to a request, for the tokens of a group.

        Raises:
            FlowpruneError: nothing answers it.
        """
        if isinstance(request, VisionRequest):
            key = "evidence", request, group.images
            whole = self._prefill.memoised(key, lambda: self._of_patches(request, group))
            index = group.index if whole.ndim == 2 else group.index.unsqueeze(-1).expand(-1, -1, whole.shape[-1])
            return whole.gather(1, index)
        if isinstance(request, LanguageAttention) and request.rows in self._attention:
            seen = self._attention[request.rows].to(group.index.device)[group.rows]
            slots = segment.slots(group.in_prompt, group.rows)
            if request.rows == "last":
                return seen[:, 0].gather(1, slots)
            return seen.gather(2, slots.unsqueeze(1).expand(-1, seen.shape[1], -1))
        if isinstance(request, TextEmbeddings) and self._embeds is not None:
            text = self._text_index(self._embeds.device)
            own = gather_tokens(self._embeds, text.clamp(min=0)).masked_fill((text < 0).unsqueeze(-1), 0)
            return own.to(group.index.device)[group.rows]
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
        return whole.index_select(1, group.layout.patch_index.to(whole.device)) if group.layout.newlines else whole

    def see_attention(
        self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, softcap: float | None
    ) -> None:
        """Keep the rows that the next step reads ``[B, rows, L]`` of a layer's attention."""
        self._attention = {}
        for request in self._method.evidence:
            if isinstance(request, LanguageAttention):
                find = self._text_index if request.rows == "text" else self._last_index
                index = find(queries.device)
                self._attention[request.rows] = self._rows_seen(layer, index, queries, keys, scaling, softcap)

    @torch.no_grad()
    def _rows_seen(
        self, layer: int, index: Tensor, queries: Tensor, keys: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attention of the tokens at ``index`` ``[B, rows]`` to those of the prompt that are left ``[B, rows, L]``."""
        prefill, device = self._prefill, queries.device
        segment = prefill.segment_of(layer).to(device)
        slots = segment.slots(index.clamp(min=0))
        chosen = queries.gather(2, slots[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
        blocks = prefill.blocks(layer)
        blocks = None if blocks is None else blocks.to(device)
        mask = attention_mask(
            prefill.keys(layer).to(device).last(keys.shape[2]),
            index + prefill.before,
            torch.float32,
            prefill.window(layer),
            blocks,
            None if blocks is None else blocks.gather(1, slots),
            prefill.geometry.window_cuts_blocks,
        )
        seen = chosen_attention(chosen, keys, scaling, mask, softcap)[..., -segment.index.shape[1] :]
        return seen.masked_fill((index < 0).unsqueeze(-1), 0)

    def _text_index(self, device: torch.device) -> Tensor:
        """Index of each row's text tokens ``[B, most of them]``, −1 pads."""
        return padded_rows(self._prompt.valid & ~self._prompt.is_visual).to(device)

    def _last_index(self, device: torch.device) -> Tensor:
        """Index of each row's last token ``[B, 1]``."""
        length = self._prompt.valid.shape[1]
        last = length - 1 - self._prompt.valid[:, ::-1].argmax(1)
        return torch.from_numpy(last).unsqueeze(1).to(device)
